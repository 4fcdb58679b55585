"""Early stopping: end a training that no longer improves, with the averaged weights of its best evaluation."""

from dataclasses import replace

import torch
from torch import Tensor

from ovd.engine.checkpoint import Checkpoint
from ovd.engine.checkpoint_writer import CheckpointWriter
from ovd.engine.ema import Ema
from ovd.engine.notes import EarlyStopNotes, Notes

METRIC = "AP"
_PREFIX = "best."


class EarlyStop:
    """Comparison of a run's evaluations by AP.

    Its whole state is stored in the checkpoints, so that a resumed run ends at the same step.
    """

    def __init__(self, patience: int, checkpoints: CheckpointWriter):
        """
        Args:
            patience: number of evaluations in a row without improvement after which the run ends.
            checkpoints: writer of the run's checkpoints, with the state of an earlier start of the run
                (`restore_early_stop`).
        """
        self._patience = patience
        self._checkpoints = checkpoints
        if checkpoints.notes.early_stop is None:
            self._note((), is_over=False)

    @property
    def _notes(self) -> EarlyStopNotes:
        notes = self._checkpoints.notes.early_stop
        assert notes is not None
        return notes

    def _note(self, evaluations: tuple[tuple[int, float], ...], *, is_over: bool) -> None:
        checkpoints = self._checkpoints
        checkpoints.notes = replace(checkpoints.notes, early_stop=EarlyStopNotes(evaluations, is_over))

    @property
    def best_step(self) -> int:
        """Step of the best evaluation; of equally good ones, the first."""
        return self._notes.best_step

    @property
    def should_stop(self) -> bool:
        """Whether the run should end, since the last `patience` evaluations were not better than the best."""
        steps = [step for step, _ in self._notes.evaluations]
        return bool(steps) and len(steps) - 1 - steps.index(self.best_step) >= self._patience

    def record_evaluation(self, step: int, metrics: dict[str, float], ema: Ema) -> None:
        """Record an evaluation; attach the averaged weights to the checkpoints if it is the best one."""
        self._note((*self._notes.evaluations, (step, metrics[METRIC])), is_over=False)
        if self.best_step == step:
            attached = {_PREFIX + name: tensor.clone() for name, tensor in ema.state_dict().items()}
            self._checkpoints.attached |= attached

    @torch.no_grad()
    def restore_best(self, ema: Ema) -> str:
        """Put the best evaluation's averaged weights into `ema`, for the last checkpoint; return a log message."""
        attached = self._checkpoints.attached
        best = {name: attached.pop(_PREFIX + name) for name in ema.state_dict()}
        ema.load_state_dict(best, ema.num_updates)
        self._note(self._notes.evaluations, is_over=True)
        return f"the averaged weights are those of step {self.best_step}"


def restore_early_stop(found: Checkpoint, checkpoints: CheckpointWriter) -> None:
    """Carry the early stopping of a resumed run over from its checkpoint to its next checkpoints."""
    if found.notes.early_stop is not None:
        checkpoints.notes = replace(checkpoints.notes, early_stop=found.notes.early_stop)
        checkpoints.attached |= {name: tensor for name, tensor in found.attached().items() if _is_best_weight(name)}


def without_early_stop(found: Checkpoint) -> tuple[Notes, dict[str, Tensor]]:
    """Return the notes and attached tensors of a checkpoint without those of early stopping, for another run."""
    others = {name: tensor for name, tensor in found.attached().items() if not _is_best_weight(name)}
    return replace(found.notes, early_stop=None), others


def _is_best_weight(name: str) -> bool:
    """Whether an attached tensor belongs to the averaged weights of the best evaluation."""
    return name.startswith(_PREFIX)


def step_of_average(notes: Notes, step: int | None) -> int | None:
    """Return the step that a checkpoint's averaged weights are from: `step`, or the best one of an ended run."""
    known = notes.early_stop
    return known.best_step if known is not None and known.is_over else step


def is_early_stop_over(notes: Notes) -> bool:
    """Whether a checkpoint with these notes is the last one of a run with `train.patience`, early or at its end."""
    return notes.early_stop is not None and notes.early_stop.is_over
