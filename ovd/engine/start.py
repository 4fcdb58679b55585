"""The ways to start a training."""

from dataclasses import dataclass

from ovd.engine.checkpoint import Checkpoint


@dataclass(frozen=True)
class Fresh:
    """A start with the weights that the detector has."""

    solve_bias: bool = True
    """Whether to set the logit bias from the first batch; false for a detector that was trained before."""


@dataclass(frozen=True)
class InitFromTrainingState:
    """A start at step 0 with the weights, the average and the optimizer state of another run's checkpoint."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Resume:
    """The continuation of the run that wrote the checkpoint, from the checkpoint's step on."""

    checkpoint: Checkpoint


Start = Fresh | InitFromTrainingState | Resume
