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
    """Adapter that adds the product of two matrices to a weight, whose first dimension is that of the outputs."""

    def __init__(self, weight: Float[Tensor, "O ..."], rank: int):
        """
        Args:
            rank: number of columns of `up` and rows of `down`; limited to the smaller side of the weight as a matrix.
        """
        super().__init__()
        num_outputs, num_inputs = len(weight), weight[0].numel()
        rank = min(rank, num_outputs, num_inputs)
        self.down = nn.Parameter(torch.randn(rank, num_inputs) * num_inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(num_outputs, rank))

    def forward(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        # Without autocast, in float32, so that a stored sum has the same bits.
        with autocast(weight.device, False):
            return weight + (self.up @ self.down).view_as(weight)


def add_adapters(backbone: Backbone, weights: Iterable[nn.Parameter], rank: int) -> None:
    """Add adapters in a backbone to those of the weights that belong to convolutions and linear layers.

    Weights that no feature depends on get none: it would not be trained, and data parallelism would wait for its
    gradient. Uses torch's global random state.
    """
    adapted = set(map(id, weights)) - set(map(id, backbone.unused_parameters()))
    for module in list(backbone.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module.weight) in adapted:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def adapters_of(module: nn.Module) -> list[LowRank]:
    """Return the adapters in a module."""
    return [part for part in module.modules() if isinstance(part, LowRank)]


def add_stored_adapter(
    name: str, weight: Float[Tensor, "O ..."], tensors: Mapping[str, Tensor]
) -> Float[Tensor, "O ..."]:
    """Return a weight plus its stored adapter, as in a module with adapters; without an adapter, the weight itself.

    Args:
        name: name of the weight in a module without adapters.
        tensors: state of a module with adapters.
    """
    prefix = name.removesuffix("weight") + "parametrizations.weight.0"
    up, down = tensors.get(f"{prefix}.up"), tensors.get(f"{prefix}.down")
    return weight if up is None or down is None else weight + (up @ down).view_as(weight)


def with_adapter_names(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the names that they have in a module with adapters, together with the adapters' own.

    Args:
        tensors: state of the module without adapters.
        module: the module with adapters.
    """
    renamed = dict(tensors)
    for path, adapter in module.named_modules():
        if isinstance(adapter, LowRank):
            weight_path = path.removesuffix(".0")
            name = weight_path.replace(".parametrizations.weight", ".weight")
            if name in renamed:
                renamed[f"{weight_path}.original"] = renamed.pop(name)
                renamed |= {f"{path}.{part}": tensor.data for part, tensor in adapter.named_parameters()}
    return renamed
