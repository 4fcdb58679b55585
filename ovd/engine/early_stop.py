"""The end of a training that no longer helps, and the averaged weights of the evaluation at which it helped most."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ovd.engine.optim import Ema
from ovd.engine.state import Checkpoints

METRIC = "AP"
_KEY, _PREFIX = "early_stop", "best."


class EarlyStop:
    """Compares the evaluations of a run. All that it knows is in checkpoints, so that a resumed run ends alike."""

    def __init__(self, patience: int, checkpoints: Checkpoints):
        """
        Args:
            patience: number of evaluations without a better one after which the run ends.
            checkpoints: of the run; they have what an earlier start of it knew.
        """
        self._patience = patience
        self._checkpoints = checkpoints
        stored = checkpoints.extra.setdefault(_KEY, {"evaluations": []})
        self._evaluations: list[list[float]] = stored["evaluations"]
        """Step and metric of each."""

    @property
    def best_step(self) -> int:
        """Of the best evaluation, the first of equal ones."""
        return int(max(self._evaluations, key=lambda evaluation: evaluation[1])[0])

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        steps = [int(step) for step, _ in self._evaluations]
        return bool(steps) and len(steps) - 1 - steps.index(self.best_step) >= self._patience

    def see(self, step: int, metrics: dict[str, float], ema: Ema) -> None:
        """Take in an evaluation of the averaged weights of a step."""
        self._evaluations.append([step, metrics[METRIC]])
        if self.best_step == step:
            attached = {_PREFIX + name: tensor.clone() for name, tensor in ema.state_dict().items()}
            self._checkpoints.attached |= attached

    @torch.no_grad()
    def put_best(self, ema: Ema) -> str:
        """Make the averaged weights those of the best evaluation, for the run's last checkpoint; say which it is."""
        attached = self._checkpoints.attached
        best = {name: attached.pop(_PREFIX + name) for name in ema.state_dict()}
        ema.load_state_dict(best, ema.num_updates)
        self._checkpoints.extra[_KEY]["is_over"] = True
        return f"the averaged weights are those of step {self.best_step}"


def carry_over(extra: dict[str, object], attached: dict[str, Tensor], checkpoints: Checkpoints) -> None:
    """Give what an earlier start of a run has stored to its next checkpoints."""
    if _KEY in extra:
        checkpoints.extra[_KEY] = extra[_KEY]
        checkpoints.attached |= {name: tensor for name, tensor in attached.items() if name.startswith(_PREFIX)}


def without_early_stop(
    extra: Mapping[str, Any], attached: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint holds besides weights, without what only its own run has a use for."""
    others = {name: tensor for name, tensor in attached.items() if not name.startswith(_PREFIX)}
    return {key: value for key, value in extra.items() if key != _KEY}, others


def ended_early(extra: dict[str, object]) -> bool:
    """Whether a checkpoint with these data is the last of a run that ended before its last step."""
    stored = extra.get(_KEY)
    return isinstance(stored, dict) and stored.get("is_over", False)
