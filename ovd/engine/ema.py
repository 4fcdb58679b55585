"""The weight average of a training; checkpoints store its whole state, so that a resumed run has the same average."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ovd.join_first import join_first


class Ema:
    """Exponential moving average of a module's parameters and floating-point buffers, kept in float32.

    The decay warms up as min(decay, (1 + t) / (10 + t)) with the number of updates t, so that the initial weights lose
    influence quickly. Integer buffers (batch counters) are copied. Parameters must not change while they are frozen,
    since frozen ones that equal their average are not averaged again. The whole state is `state_dict()` and
    `num_updates`.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the weight average is {decay}; it must be at least 0 and less than 1")
        self.decay = decay
        self.num_updates = 0
        self._updated: tuple[nn.Module, dict[str, Tensor], frozenset[str]] | None = None
        self._average = {
            name: tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
            for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights; call once after every optimizer step."""
        if self._updated is None or self._updated[0] is not module:
            self._updated = self._follow(module)
        current, settled = self._updated[1:]
        moving = [name for name in self._average if name not in settled or current[name].requires_grad]
        floating = [name for name in moving if self._average[name].is_floating_point()]
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        if floating:
            torch._foreach_lerp_(
                [self._average[name] for name in floating],
                [current[name].float() for name in floating],
                1 - decay,
            )
        for name, tensor in self._average.items():
            if not tensor.is_floating_point():
                tensor.copy_(current[name])
        self.num_updates += 1

    def _follow(self, module: nn.Module) -> tuple[nn.Module, dict[str, Tensor], frozenset[str]]:
        """Return a module, its weights (changed in place), and the names of frozen weights that equal their average."""
        current = module.state_dict(keep_vars=True)
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        settled = (name for name in frozen if torch.equal(self._average[name], current[name].float()))
        return module, current, frozenset(settled)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the weights of `module` (built like the averaged one) with the average."""
        module.load_state_dict(self._average, strict=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged tensors under the names that they have in the module's own state_dict."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore `state_dict()` and `num_updates`.

        Raises:
            ValueError: the names differ.
        """
        if tensors.keys() != self._average.keys():
            different = sorted(tensors.keys() ^ self._average.keys())
            raise ValueError(f"the weight average and the model have different tensors: {join_first(different, 20)}")
        for name, tensor in self._average.items():
            tensor.copy_(tensors[name])
        self.num_updates, self._updated = num_updates, None
