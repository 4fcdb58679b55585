"""Parameter groups, AdamW, the learning-rate schedule, the weight average and the check against NaN.

Everything here is a function of its arguments or of state that a checkpoint stores, so a resumed run takes the same
steps as an uninterrupted one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovd.choices import LearningRateDecay

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_TOKENS = {"cls_token", "class_embedding", "reg_token", "latent", "pos_embed", "positional_embedding"}
"""What open_clip and timm call a transformer's tokens and position embeddings."""


class NonFiniteError(RuntimeError):
    """A loss or the gradient is NaN or infinite; the optimizer has not moved the weights, which are still valid."""

    code = "F19"


@dataclass(frozen=True)
class GroupSpec:
    """Modules (or single parameters) with one learning rate and weight decay."""

    members: Sequence[nn.Module | nn.Parameter]
    lr_factor: float = 1.0
    """Factor of the base learning rate."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels; `parameter_groups` says what has none."""


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
        listed = ", ".join(forgotten[:20])
        raise ValueError(f"{len(forgotten)} trainable parameters are in no group: {listed}; add their module to one")
    return groups


def _parameters_of(members: Iterable[nn.Module | nn.Parameter]) -> Iterable[nn.Parameter]:
    for member in members:
        parameters = [member] if isinstance(member, nn.Parameter) else member.parameters()
        yield from (parameter for parameter in parameters if parameter.requires_grad)


def _is_per_channel(parameter: Tensor) -> bool:
    return parameter.ndim == 0 or parameter.numel() == parameter.shape[0]


def build_optimizer(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Fused AdamW (arXiv:1711.05101) over `parameter_groups`; each group's peak rate is `lr * lr_factor`."""
    groups = [{**group, "lr": lr * group["lr_factor"], "initial_lr": lr * group["lr_factor"]} for group in groups]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


FINAL_FACTOR = 0.01
"""Of the peak learning rate, at the end of a run."""


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int, decay: LearningRateDecay) -> float:
    """Factor of the peak learning rate in step `step` (0-based).

    A linear warm-up reaches 1 in its last step. Then the factor falls to `FINAL_FACTOR`, along half a cosine or in two
    equal factors after 2/3 and 8/9 of all steps (the fractions of detectron2's 1x schedule), or stays at 1
    (`constant`).

    Raises:
        ValueError: the step is outside the schedule, or the warm-up is longer than the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the schedule of {total_steps} steps")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"{warmup_steps} warm-up steps do not fit into {total_steps} steps")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "constant":
        return 1.0
    if decay == "step":
        drops = (step >= total_steps * 2 / 3) + (step >= total_steps * 8 / 9)
        return FINAL_FACTOR ** (drops / 2)
    progress = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def gradient_norm(parameters: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The joint L2 norm of all gradients; 0 if there is none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def check_finite(
    losses: Mapping[str, Float[Tensor, ""]], grad_norm: Float[Tensor, ""], batch_ids: Sequence[int | str]
) -> dict[str, float]:
    """Check losses and gradient of a step, last of all that the step queues, since it waits for the GPU.

    Returns:
        The losses.

    Raises:
        NonFiniteError: names the losses (or the gradient) that are not finite and the batch's images.
    """
    values = {**losses, "gradient norm": grad_norm}
    # One transfer from the device for all losses.
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    by_name = dict(zip(values, numbers, strict=True))
    bad = [f"{name} = {number}" for name, number in by_name.items() if not math.isfinite(number)]
    if bad:
        images = ", ".join(map(str, batch_ids))
        raise NonFiniteError(f"not finite before the optimizer step: {', '.join(bad)}; images of the batch: {images}")
    return {name: by_name[name] for name in losses}


def step_if_finite(
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, Float[Tensor, ""]],
    grad_norm: Float[Tensor, ""],
    *,
    max_norm: float,
) -> None:
    """Take a step of fused AdamW with gradients clipped to `max_norm`, if losses and gradient are finite.

    If not, weights and moments stay as they are. So a GPU gets the step, and what follows it, before
    `check_finite` waits for the numbers. AdamW reads the gradients once, and clips them meanwhile.

    Args:
        grad_norm: `gradient_norm` of the optimizer's parameters.
    """
    numbers = torch.stack([value.detach().float() for value in (*losses.values(), grad_norm)])
    # What torch's gradient scaler sets: at a found_inf of 1 nothing is done; gradients are divided by grad_scale.
    optimizer.found_inf = (~numbers.isfinite()).any().float()  # type: ignore[attr-defined]
    optimizer.grad_scale = (grad_norm.float() / max_norm).clamp(min=1)  # type: ignore[attr-defined]
    optimizer.step()
    # Which the fused form leaves out, so that what was computed from the weights before would count as theirs.
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])


class Ema:
    """Exponential moving average of a module's parameters and floating-point buffers, kept in float32.

    The decay warms up as min(decay, (1 + t) / (10 + t)) with the number of updates t, so that the initial weights lose
    influence quickly. Integer buffers (batch counters) are copied. Parameters are taken not to change while they are
    frozen. The whole state is `state_dict()` and `num_updates`.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay of the weight average {decay} is not in [0, 1)")
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
        """A module, its weights, which change in place, and which of them are frozen at the average."""
        current = module.state_dict(keep_vars=True)
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        settled = (name for name in frozen if torch.equal(self._average[name], current[name].float()))
        return module, current, frozenset(settled)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the weights of `module` (built like the averaged one) with the average."""
        module.load_state_dict(self._average, strict=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors under the module's own names, as in a weights file of the module."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore `state_dict()` and `num_updates`.

        Raises:
            ValueError: the names differ.
        """
        if tensors.keys() != self._average.keys():
            different = sorted(tensors.keys() ^ self._average.keys())[:20]
            raise ValueError(f"weight average: names on one side only: {', '.join(different)}")
        for name, tensor in self._average.items():
            tensor.copy_(tensors[name])
        self.num_updates, self._updated = num_updates, None
