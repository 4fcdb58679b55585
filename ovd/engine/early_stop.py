"""The end of a training that no longer helps, and the averaged weights of the evaluation at which it helped most."""

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
    """Compares the evaluations of a run. All that it knows is in checkpoints, so that a resumed run ends alike."""

    def __init__(self, patience: int, checkpoints: CheckpointWriter):
        """
        Args:
            patience: number of evaluations without a better one after which the run ends.
            checkpoints: of the run; they have what an earlier start of it knew.
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
        """Of the best evaluation, the first of equal ones."""
        return self._notes.best_step

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        steps = [step for step, _ in self._notes.evaluations]
        return bool(steps) and len(steps) - 1 - steps.index(self.best_step) >= self._patience

    def see(self, step: int, metrics: dict[str, float], ema: Ema) -> None:
        """Take in an evaluation of the averaged weights of a step."""
        self._note((*self._notes.evaluations, (step, metrics[METRIC])), is_over=False)
        if self.best_step == step:
            attached = {_PREFIX + name: tensor.clone() for name, tensor in ema.state_dict().items()}
            self._checkpoints.attached |= attached

    @torch.no_grad()
    def put_best(self, ema: Ema) -> str:
        """Make the averaged weights those of the best evaluation, for the run's last checkpoint; say which it is."""
        attached = self._checkpoints.attached
        best = {name: attached.pop(_PREFIX + name) for name in ema.state_dict()}
        ema.load_state_dict(best, ema.num_updates)
        self._note(self._notes.evaluations, is_over=True)
        return f"the averaged weights are those of step {self.best_step}"


def carry_over(found: Checkpoint, checkpoints: CheckpointWriter) -> None:
    """Give what an earlier start of a run has stored to its next checkpoints."""
    if found.notes.early_stop is not None:
        checkpoints.notes = replace(checkpoints.notes, early_stop=found.notes.early_stop)
        checkpoints.attached |= {name: tensor for name, tensor in found.attached().items() if _is_best(name)}


def without_early_stop(found: Checkpoint) -> tuple[Notes, dict[str, Tensor]]:
    """The notes and attached tensors of a checkpoint, without what only its own run has a use for."""
    others = {name: tensor for name, tensor in found.attached().items() if not _is_best(name)}
    return replace(found.notes, early_stop=None), others


def _is_best(name: str) -> bool:
    """Whether an attached tensor is of the averaged weights of the best evaluation."""
    return name.startswith(_PREFIX)


def averaged_step(notes: Notes, step: int | None) -> int | None:
    """The step whose averaged weights the checkpoint of a step holds: its own, unless the run ended with its best."""
    known = notes.early_stop
    return known.best_step if known is not None and known.is_over else step


def ended_early(notes: Notes) -> bool:
    """Whether a checkpoint with these notes is the last of a run that ended before its last step."""
    return notes.early_stop is not None and notes.early_stop.is_over
