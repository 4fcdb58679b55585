"""Group norm of channels-last maps, with the ReLU after it; torch's own kernel takes and returns channels first.

Sums are of differences to each channel's value at the image's first point: E[x^2] - E[x]^2 of the values themselves
would lose all digits if a mean is much larger than the deviation.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 32
"""Number of points that a program loads at a time."""
PROGRAMS_PER_IMAGE = 64


class GroupNormRelu(torch.autograd.Function):
    """Group norm with an optional ReLU. Sums are in float32 and in a fixed order; the output has the input's dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B C h w"],
        weight: Float[Tensor, " C"],
        bias: Float[Tensor, " C"],
        groups: int,
        epsilon: float,
        relu: bool,
    ) -> Float[Tensor, "B C h w"]:
        """Compute the group norm, then the ReLU if `relu`.

        Args:
            weight, bias: factor and offset of each channel; C and the number of channels per group are powers of 2.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        num_points = height * width
        programs = min(PROGRAMS_PER_IMAGE, triton.cdiv(num_points, ROWS))
        sums = torch.empty(batch, programs, 2, channels, dtype=torch.float32, device=x.device)
        _sums_of_x[(batch, programs)](x, sums, num_points, programs, CHANNELS=channels, ROWS=ROWS)
        mean, inverse = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
        _statistics[(batch,)](x, sums, mean, inverse, num_points, programs, epsilon, CHANNELS=channels, GROUPS=groups)
        out = torch.empty_like(x)
        _normalize[(batch, programs)](
            x, out, mean, inverse, weight, bias, num_points, programs, CHANNELS=channels, RELU=relu,
            ROWS=ROWS,
        )  # fmt: skip
        ctx.save_for_backward(x, mean, inverse, weight, bias)
        ctx.groups, ctx.relu = groups, relu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B C h w"]) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        num_points, groups = height * width, ctx.groups
        programs = min(PROGRAMS_PER_IMAGE, triton.cdiv(num_points, ROWS))
        shape = {"CHANNELS": channels, "RELU": ctx.relu, "ROWS": ROWS}
        sums = torch.empty(batch, programs, 2, channels, dtype=torch.float32, device=x.device)
        _sums_of_gradient[(batch, programs)](
            x, gradient, sums, mean, inverse, weight, bias, num_points, programs, **shape
        )
        shift, along = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
        _shares[(batch,)](sums, weight, shift, along, num_points, programs, CHANNELS=channels, GROUPS=groups)
        grad_bias, grad_weight = sums.sum(dim=(0, 1))
        out = torch.empty_like(x)
        _gradient[(batch, programs)](
            x, gradient, out, mean, inverse, weight, bias, shift, along, num_points, programs,
            **shape,
        )  # fmt: skip
        return out, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None


@triton.jit
def _mean_of_groups(sums, num_points, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    """Compute the mean over each group of channels, repeated at every channel."""
    width: tl.constexpr = CHANNELS // GROUPS
    read_groups = tl.sum(tl.reshape(sums, (GROUPS, width)), axis=1) / (num_points * width)
    return tl.reshape(tl.broadcast_to(read_groups[:, None], (GROUPS, width)), (CHANNELS,))


@triton.jit
def _totals(sums, image, programs, CHANNELS: tl.constexpr):
    """Add up both sums of an image over all programs."""
    channel = tl.arange(0, CHANNELS)
    first = tl.zeros((CHANNELS,), dtype=tl.float32)
    second = tl.zeros((CHANNELS,), dtype=tl.float32)
    for program in range(programs):
        at = sums + (image * programs + program) * 2 * CHANNELS + channel
        first += tl.load(at)
        second += tl.load(at + CHANNELS)
    return first, second


@triton.jit
def _first_point(x, image, num_points, CHANNELS: tl.constexpr):
    """Load an image's first point; the sums are of differences to it."""
    return tl.load(x + image * num_points * CHANNELS + tl.arange(0, CHANNELS)).to(tl.float32)


@triton.jit
def _statistics(x, sums, mean, inverse, num_points, programs, epsilon, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    total, squares = _totals(sums, image, programs, CHANNELS)
    first = _first_point(x, image, num_points, CHANNELS)
    away = total / num_points
    center = _mean_of_groups(total + num_points * first, num_points, CHANNELS, GROUPS)
    within = tl.maximum(squares - total * away, 0.0, propagate_nan=tl.PropagateNan.ALL)
    between = first + away - center
    variance = _mean_of_groups(within + num_points * between * between, num_points, CHANNELS, GROUPS)
    at = image * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(mean + at, center)
    tl.store(inverse + at, 1.0 / tl.sqrt(variance + epsilon))


@triton.jit
def _shares(sums, weight, shift, along, num_points, programs, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    total, products = _totals(sums, image, programs, CHANNELS)
    channel = tl.arange(0, CHANNELS)
    gain = tl.load(weight + channel).to(tl.float32)
    at = image * CHANNELS + channel
    tl.store(shift + at, _mean_of_groups(total * gain, num_points, CHANNELS, GROUPS))
    tl.store(along + at, _mean_of_groups(products * gain, num_points, CHANNELS, GROUPS))


@triton.jit
def _sums_of_x(x, sums, num_points, programs, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    squares = tl.zeros((CHANNELS,), dtype=tl.float32)
    first = _first_point(x, image, num_points, CHANNELS)
    for start in range(tl.program_id(1) * ROWS, num_points, programs * ROWS):
        row = start + tl.arange(0, ROWS)
        at = (image * num_points + row)[:, None] * CHANNELS + channel[None, :]
        inside = (row < num_points)[:, None]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - first[None, :]
        values = tl.where(inside, values, 0.0)
        total += tl.sum(values, axis=0)
        squares += tl.sum(values * values, axis=0)
    out = sums + (image * programs + tl.program_id(1)) * 2 * CHANNELS + channel
    tl.store(out, total)
    tl.store(out + CHANNELS, squares)


@triton.jit
def _normalize(
    x, out, mean, inverse, weight, bias, num_points, programs,
    CHANNELS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    factor = tl.load(inverse + image * CHANNELS + channel) * tl.load(weight + channel).to(tl.float32)
    center = tl.load(mean + image * CHANNELS + channel)
    offset = tl.load(bias + channel).to(tl.float32)
    for start in range(tl.program_id(1) * ROWS, num_points, programs * ROWS):
        row = start + tl.arange(0, ROWS)
        at = (image * num_points + row)[:, None] * CHANNELS + channel[None, :]
        inside = (row < num_points)[:, None]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]
        values = values * factor[None, :] + offset[None, :]
        if RELU:
            values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out + at, values, mask=inside)


@triton.jit
def _sums_of_gradient(
    x, gradient, sums, mean, inverse, weight, bias, num_points, programs,
    CHANNELS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    center = tl.load(mean + image * CHANNELS + channel)
    scale = tl.load(inverse + image * CHANNELS + channel)
    gain = tl.load(weight + channel).to(tl.float32)
    offset = tl.load(bias + channel).to(tl.float32)
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    along = tl.zeros((CHANNELS,), dtype=tl.float32)
    for start in range(tl.program_id(1) * ROWS, num_points, programs * ROWS):
        row = start + tl.arange(0, ROWS)
        at = (image * num_points + row)[:, None] * CHANNELS + channel[None, :]
        inside = (row < num_points)[:, None]
        normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]) * scale[None, :]
        slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            slope = tl.where(normal * gain[None, :] + offset[None, :] <= 0.0, 0.0, slope)
        total += tl.sum(slope, axis=0)
        along += tl.sum(slope * normal, axis=0)
    out = sums + (image * programs + tl.program_id(1)) * 2 * CHANNELS + channel
    tl.store(out, total)
    tl.store(out + CHANNELS, along)


@triton.jit
def _gradient(
    x, gradient, out, mean, inverse, weight, bias, shift, along, num_points, programs,
    CHANNELS: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    center = tl.load(mean + image * CHANNELS + channel)
    scale = tl.load(inverse + image * CHANNELS + channel)
    moved = tl.load(shift + image * CHANNELS + channel)
    turned = tl.load(along + image * CHANNELS + channel)
    gain = tl.load(weight + channel).to(tl.float32)
    offset = tl.load(bias + channel).to(tl.float32)
    for start in range(tl.program_id(1) * ROWS, num_points, programs * ROWS):
        row = start + tl.arange(0, ROWS)
        at = (image * num_points + row)[:, None] * CHANNELS + channel[None, :]
        inside = (row < num_points)[:, None]
        normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]) * scale[None, :]
        slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            slope = tl.where(normal * gain[None, :] + offset[None, :] <= 0.0, 0.0, slope)
        slope = scale[None, :] * (slope * gain[None, :] - moved[None, :] - normal * turned[None, :])
        tl.store(out + at, slope, mask=inside)
