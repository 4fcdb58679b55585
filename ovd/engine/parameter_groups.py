"""Optimizer parameter groups: every parameter in exactly one, with a learning rate and a weight decay."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ovd.format_count import format_count
from ovd.join_first import join_first

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_TOKENS = {"cls_token", "class_embedding", "reg_token", "latent", "pos_embed", "positional_embedding"}
"""Names of a transformer's tokens and position embeddings in open_clip and timm."""


@dataclass(frozen=True)
class GroupSpec:
    """Modules (or single parameters) with one learning rate and weight decay."""

    members: Sequence[nn.Module | nn.Parameter]
    lr_factor: float = 1.0
    """Factor of the base learning rate."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels; other parameters have none (see `parameter_groups`)."""


def parameter_groups(module: nn.Module, specs: Mapping[str, GroupSpec]) -> list[dict[str, Any]]:
    """Split every trainable parameter of `module` into torch optimizer groups, each parameter into exactly one.

    A spec gives up to two groups, `<name>` and `<name>/no_decay`. The second contains biases, the parameters of
    norms, a transformer's tokens and position embeddings, and per-channel scales: 0-d and 1-d parameters and kernels
    of one element per output channel, such as NFNet's weight-standardization gains. Parameters that do not require a
    gradient are left out.

    Returns:
        Groups for `build_optimizer`: `name`, `params`, `lr_factor`, `weight_decay`.

    Raises:
        ValueError: a trainable parameter is in no group or in two, or a group's parameter is not in the module.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    exempt = {
        id(parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(owner, _NORMS) or name.endswith("bias") or name in _TOKENS or _is_per_channel(parameter)
    }
    owner_of: dict[int, str] = {}
    groups: list[dict[str, Any]] = []
    for group_name, spec in specs.items():
        decayed: list[nn.Parameter] = []
        not_decayed: list[nn.Parameter] = []
        for parameter in _parameters_of(spec.members):
            key = id(parameter)
            if key not in names:
                shape = tuple(parameter.shape)
                raise ValueError(f"parameter group {group_name!r}: a parameter of shape {shape} is not in the module")
            if key in owner_of:
                raise ValueError(f"{names[key]} is in two parameter groups: {owner_of[key]!r} and {group_name!r}")
            owner_of[key] = group_name
            (not_decayed if key in exempt else decayed).append(parameter)
        for suffix, parameters, weight_decay in (
            ("", decayed, spec.weight_decay),
            ("/no_decay", not_decayed, 0.0),
        ):
            if parameters:
                groups.append(
                    {
                        "name": group_name + suffix,
                        "params": parameters,
                        "lr_factor": spec.lr_factor,
                        "weight_decay": weight_decay,
                    }
                )
    forgotten = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in owner_of]
    if forgotten:
        named = join_first(forgotten, 20)
        raise ValueError(
            f"{format_count(len(forgotten), 'trainable parameter')} in no group: {named}; add their module to one"
        )
    return groups


def _parameters_of(members: Iterable[nn.Module | nn.Parameter]) -> Iterable[nn.Parameter]:
    for member in members:
        parameters = [member] if isinstance(member, nn.Parameter) else member.parameters()
        yield from (parameter for parameter in parameters if parameter.requires_grad)


def _is_per_channel(parameter: Tensor) -> bool:
    return parameter.ndim == 0 or parameter.numel() == parameter.shape[0]
