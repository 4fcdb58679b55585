"""The ways to start a training."""

from dataclasses import dataclass

from ovd.engine.checkpoint import Checkpoint


@dataclass(frozen=True)
class Fresh:
    """Start with the detector's present weights."""

    solve_bias: bool = True
    """Whether to set the logit bias from the first batch; false for a detector that was trained before."""


@dataclass(frozen=True)
class GoOnFrom:
    """Start with the weights, the average and the optimizer's moments of another run's checkpoint, at step 0."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Resume:
    """Continue the run that wrote this checkpoint."""

    checkpoint: Checkpoint


Start = Fresh | GoOnFrom | Resume
