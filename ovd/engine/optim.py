"""AdamW, the learning-rate schedule, and the check for NaN and infinity.

Everything here is a function of its arguments or of state that a checkpoint stores, so a resumed run takes the same
steps as an uninterrupted one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.choices import LearningRateDecay
from ovd.format_count import format_count


class NonFiniteError(RuntimeError):
    """A loss or the gradient is NaN or infinite; the optimizer has not changed the weights, which are still valid."""

    code = "F19"


def build_optimizer(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Build fused AdamW (arXiv:1711.05101) over `parameter_groups`; each group's peak rate is `lr * lr_factor`."""
    groups = [{**group, "lr": lr * group["lr_factor"], "initial_lr": lr * group["lr_factor"]} for group in groups]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


FINAL_FACTOR = 0.01
"""Factor of the peak learning rate at the end of a run."""


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int, decay: LearningRateDecay) -> float:
    """Return the factor of the peak learning rate in step `step` (0-based).

    A linear warm-up reaches 1 in its last step. Then the factor falls to `FINAL_FACTOR`, along half a cosine or in two
    equal factors after 2/3 and 8/9 of all steps (the fractions of detectron2's 1x schedule), or stays at 1
    (`constant`).

    Raises:
        ValueError: the step is outside the schedule, or the warm-up is longer than the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the schedule of {total_steps} steps")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"{format_count(warmup_steps, 'warm-up step')} do not fit into {format_count(total_steps, 'step')}"
        )
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
    """Set every group's learning rate to `factor` times its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def gradient_norm(parameters: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Compute the joint L2 norm of all gradients; 0 if there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def step_if_finite(
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, Float[Tensor, ""]],
    grad_norm: Float[Tensor, ""],
    *,
    max_norm: float,
) -> Float[Tensor, " N"]:
    """Take a step of fused AdamW with gradients clipped to `max_norm`, if losses and gradient norm are finite.

    Otherwise weights and moments stay as they are. The decision is made on the device, so a GPU can queue the step and
    what follows it before `check_finite` waits for the values. The gradients are clipped as AdamW reads them, without
    an additional pass over them.

    Args:
        grad_norm: `gradient_norm` of the optimizer's parameters.

    Returns:
        The losses, then the norm, for `check_finite`.
    """
    losses_and_norm = torch.stack([value.detach().float() for value in (*losses.values(), grad_norm)])
    # Attributes that torch's GradScaler sets: found_inf of 1 skips the step; gradients are divided by grad_scale.
    optimizer.found_inf = (~losses_and_norm.isfinite()).any().float()  # type: ignore[attr-defined]
    optimizer.grad_scale = (grad_norm.float() / max_norm).clamp(min=1)  # type: ignore[attr-defined]
    optimizer.step()
    # The fused step leaves this out, so results computed from the old weights would pass for current ones
    # (clip/tensor_snapshot.py).
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])
    return losses_and_norm


def check_finite(
    losses: Mapping[str, Float[Tensor, ""]], losses_and_norm: Float[Tensor, " N"], batch_ids: Sequence[int | str]
) -> dict[str, float]:
    """Check that the losses and the gradient norm of a step are finite; waits for the GPU, so call it last in a step.

    Args:
        losses: the losses given to `step_if_finite`; only their names are used.
        losses_and_norm: the values that `step_if_finite` returned.
        batch_ids: ids of the batch's images, for the error.

    Returns:
        The losses by name.

    Raises:
        NonFiniteError: names the losses (or the gradient norm) that are not finite, and the batch's images.
    """
    values = losses_and_norm.tolist()  # a single transfer from the GPU
    by_name = dict(zip((*losses, "gradient norm"), values, strict=True))
    bad = [f"{name} = {number}" for name, number in by_name.items() if not math.isfinite(number)]
    if bad:
        images = ", ".join(map(str, batch_ids))
        raise NonFiniteError(
            f"NaN or infinity before the optimizer step: {', '.join(bad)}; images of the batch: {images}"
        )
    return {name: by_name[name] for name in losses}
