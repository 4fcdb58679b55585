"""AdamW, the learning-rate schedule and the check against NaN.

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


class NonFiniteError(RuntimeError):
    """A loss or the gradient is NaN or infinite; the optimizer has not moved the weights, which are still valid."""

    code = "F19"


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


def step_if_finite(
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, Float[Tensor, ""]],
    grad_norm: Float[Tensor, ""],
    *,
    max_norm: float,
) -> Float[Tensor, " numbers"]:
    """Take a step of fused AdamW with gradients clipped to `max_norm`, if losses and gradient are finite.

    If not, weights and moments stay as they are. So a GPU gets the step, and what follows it, before
    `check_finite` waits for the numbers. AdamW reads the gradients once, and clips them meanwhile.

    Args:
        grad_norm: `gradient_norm` of the optimizer's parameters.

    Returns:
        The losses and the norm, in this order, for `check_finite`.
    """
    numbers = torch.stack([value.detach().float() for value in (*losses.values(), grad_norm)])
    # What torch's gradient scaler sets: at a found_inf of 1 nothing is done; gradients are divided by grad_scale.
    optimizer.found_inf = (~numbers.isfinite()).any().float()  # type: ignore[attr-defined]
    optimizer.grad_scale = (grad_norm.float() / max_norm).clamp(min=1)  # type: ignore[attr-defined]
    optimizer.step()
    # Which the fused form leaves out, so that what was computed from the weights before would count as theirs.
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])
    return numbers


def check_finite(
    losses: Mapping[str, Float[Tensor, ""]], numbers: Float[Tensor, " numbers"], batch_ids: Sequence[int | str]
) -> dict[str, float]:
    """Check losses and gradient of a step, last of all that the step queues, since it waits for the GPU.

    Args:
        losses: those of `step_if_finite`, which are named here.
        numbers: what it returned.

    Returns:
        The losses.

    Raises:
        NonFiniteError: names the losses (or the gradient) that are not finite and the batch's images.
    """
    by_name = dict(zip((*losses, "gradient norm"), numbers.tolist(), strict=True))  # one transfer for all
    bad = [f"{name} = {number}" for name, number in by_name.items() if not math.isfinite(number)]
    if bad:
        images = ", ".join(map(str, batch_ids))
        raise NonFiniteError(f"not finite before the optimizer step: {', '.join(bad)}; images of the batch: {images}")
    return {name: by_name[name] for name in losses}
