"""Low-rank adapters (LoRA, arXiv:2106.09685) in a backbone's convolutions and linear layers: weight + up @ down.

`up` starts at zero, so that a fresh adapter changes nothing. Weights that a library reads under another name than
`weight`, such as the joint projection of torch's attention, get none.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ovd.model.backbone import Backbone
from ovd.precision import autocast


class LowRank(nn.Module):
    """Adds a product of two matrices to a weight, whose first dimension are the outputs."""

    def __init__(self, weight: Float[Tensor, "O ..."], rank: int):
        """
        Args:
            rank: columns of `up` and rows of `down`; at most as many as the weight has.
        """
        super().__init__()
        num_outputs, num_inputs = len(weight), weight[0].numel()
        rank = min(rank, num_outputs, num_inputs)
        self.down = nn.Parameter(torch.randn(rank, num_inputs) * num_inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(num_outputs, rank))

    def forward(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        # In float32 under autocast, too, so that a stored sum has the same bits.
        with autocast(weight.device, False):
            return weight + (self.up @ self.down).view_as(weight)


def add_adapters(backbone: Backbone, weights: Iterable[nn.Parameter], rank: int) -> None:
    """Put adapters into a backbone, beside those of the weights that are of convolutions and linear layers.

    Weights that no feature depends on get none: nothing would train it, and data parallelism would wait for its
    gradient. Uses torch's global random state.
    """
    adapted = set(map(id, weights)) - set(map(id, backbone.unused_parameters()))
    for module in list(backbone.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module.weight) in adapted:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def adapters_of(module: nn.Module) -> list[LowRank]:
    """The adapters in a module."""
    return [part for part in module.modules() if isinstance(part, LowRank)]


def add_stored(name: str, weight: Float[Tensor, "O ..."], tensors: Mapping[str, Tensor]) -> Float[Tensor, "O ..."]:
    """A weight with its stored adapter, as a module with adapters has it; without an adapter, itself.

    Args:
        name: of the weight in a module without adapters.
        tensors: state of a module with adapters.
    """
    prefix = name.removesuffix("weight") + "parametrizations.weight.0"
    up, down = tensors.get(f"{prefix}.up"), tensors.get(f"{prefix}.down")
    return weight if up is None or down is None else weight + (up @ down).view_as(weight)


def with_adapter_names(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module without adapters, by the names that they have in one with adapters, and its adapters' own."""
    renamed = dict(tensors)
    for path, adapter in module.named_modules():
        if isinstance(adapter, LowRank):
            weight_path = path.removesuffix(".0")
            name = weight_path.replace(".parametrizations.weight", ".weight")
            if name in renamed:
                renamed[f"{weight_path}.original"] = renamed.pop(name)
                renamed |= {f"{path}.{part}": tensor.data for part, tensor in adapter.named_parameters()}
    return renamed
