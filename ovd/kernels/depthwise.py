"""A depthwise convolution of channels-last maps that uses more of the GPU's arithmetic than torch's libraries do.

A thread holds two channels of a row of points, and loads each input once for all these points, or for all taps that it
sums.
"""

# mypy: disable-error-code=assignment
# Tuples grow in Triton's loops, which mypy takes for a change of type.

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = {"ROWS": 4, "COLUMNS": 5, "CHANNELS": 64}
"""Rows and columns of points, and channels, that a program computes at a time; each row has a warp."""
PROGRAMS = 128
"""Maximum number of programs that share a block of channels when the weight's gradient is summed."""


class DepthwiseShortcut(torch.autograd.Function):
    """Depthwise convolution with an odd window, stride 1 and zero padding, which also returns its input as a shortcut.

    The backward pass adds the shortcut's gradient in the kernel that computes the convolution's input gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B H W C"], weight: Float[Tensor, "C 1 K K"], bias: Float[Tensor, " C"]
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W C"]]:
        x = x.contiguous()
        taps = weight.flatten(1).t().contiguous()  # K * K C
        out = torch.empty_like(x)
        _convolve[_grid(x.shape)](
            x, taps, bias, x, out, *x.shape[1:], WINDOW=weight.shape[-1], FLIP=False, ADDED=False, **TILE
        )  # fmt: skip
        ctx.save_for_backward(x, taps)
        ctx.shape, ctx.dtype = weight.shape, bias.dtype
        return out, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "B H W C"], grad_shortcut: Float[Tensor, "B H W C"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        gradient, grad_shortcut = gradient.contiguous(), grad_shortcut.contiguous()
        shape = {"WINDOW": ctx.shape[-1], **TILE}
        grad_x = torch.empty_like(x)
        grid = _grid(x.shape)
        _convolve[grid](gradient, taps, taps, grad_shortcut, grad_x, *x.shape[1:], FLIP=True, ADDED=True, **shape)
        num_tiles, blocks = grid[0] * len(x), grid[1]
        programs = min(PROGRAMS, num_tiles)
        sums = torch.empty(programs, len(taps) + 1, x.shape[3], dtype=torch.float32, device=x.device)
        _sum_taps[(programs, blocks)](gradient, x, sums, num_tiles, *x.shape[1:], **shape)
        total = sums.sum(dim=0)
        return grad_x, total[:-1].t().reshape(ctx.shape).to(taps.dtype), total[-1].to(ctx.dtype)


def _grid(shape: torch.Size) -> tuple[int, int, int]:
    batch, height, width, channels = shape
    tiles = triton.cdiv(height, TILE["ROWS"]) * triton.cdiv(width, TILE["COLUMNS"])
    return tiles, triton.cdiv(channels, TILE["CHANNELS"]), batch


@triton.jit
def _zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    values = ()
    for _ in tl.static_range(COUNT):
        values += (tl.zeros((ROWS, CHANNELS), dtype=tl.float32),)
    return values


@triton.jit
def _load_columns(x, row, first, height, width, channels, channel, COUNT: tl.constexpr):
    """Load the points of some rows in COUNT columns from the first, with zeros outside the map."""
    inside = ((row >= 0) & (row < height))[:, None] & (channel < channels)[None, :]
    at = (row * width + first)[:, None] * channels + channel[None, :]
    values = ()
    for step in tl.static_range(COUNT):
        is_column = (first + step >= 0) & (first + step < width)
        value = tl.load(x + (at + step * channels), mask=inside & is_column, other=0.0)
        values += (value.to(tl.float32),)
    return values


@triton.jit
def _convolve(
    x, taps, bias, added, out, height, width, channels,
    WINDOW: tl.constexpr, FLIP: tl.constexpr, ADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(width, COLUMNS)
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % tiles * COLUMNS
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    image = tl.program_id(2).to(tl.int64) * height * width * channels
    totals = _zeros(COLUMNS, ROWS, CHANNELS)
    for down in range(WINDOW):
        factors = ()
        for across in tl.static_range(WINDOW):
            tap = down * WINDOW + across
            if FLIP:
                tap = WINDOW * WINDOW - 1 - tap
            factor = tl.load(taps + tap * channels + channel, mask=is_channel, other=0.0)
            factors += (factor.to(tl.float32)[None, :],)
        source, left = row + down - WINDOW // 2, first - WINDOW // 2
        values = _load_columns(x + image, source, left, height, width, channels, channel, COLUMNS + WINDOW - 1)
        changed = ()
        for step in tl.static_range(COLUMNS):
            total = totals[step]
            for across in tl.static_range(WINDOW):
                total += values[step + across] * factors[across]
            changed += (total,)
        totals = changed
    at = image + (row * width + first)[:, None] * channels + channel[None, :]
    for step in tl.static_range(COLUMNS):
        inside = (row < height)[:, None] & is_channel[None, :] & (first + step < width)
        total = totals[step]
        if ADDED:
            total += tl.load(added + at + step * channels, mask=inside, other=0.0).to(tl.float32)
        else:
            total += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        tl.store(out + at + step * channels, total, mask=inside)


@triton.jit
def _sum_taps(
    gradient, x, sums, num_tiles, height, width, channels,
    WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(width, COLUMNS)
    of_image = tl.cdiv(height, ROWS) * tiles
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    totals = _zeros(WINDOW * WINDOW, ROWS, CHANNELS)
    grad_bias = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        image = tl.full((), tile // of_image, tl.int64) * height * width * channels
        row = tile % of_image // tiles * ROWS + tl.arange(0, ROWS)
        first = tile % of_image % tiles * COLUMNS
        slopes = _load_columns(gradient + image, row, first, height, width, channels, channel, COLUMNS)
        for step in tl.static_range(COLUMNS):
            grad_bias += slopes[step]
        changed = ()
        for down in tl.static_range(WINDOW):
            source, left = row + down - WINDOW // 2, first - WINDOW // 2
            values = _load_columns(x + image, source, left, height, width, channels, channel, COLUMNS + WINDOW - 1)
            for across in tl.static_range(WINDOW):
                total = totals[down * WINDOW + across]
                for step in tl.static_range(COLUMNS):
                    total += slopes[step] * values[step + across]
                changed += (total,)
        totals = changed
    to = sums + tl.program_id(0).to(tl.int64) * (WINDOW * WINDOW + 1) * channels + channel
    for tap in tl.static_range(WINDOW * WINDOW):
        tl.store(to + tap * channels, tl.sum(totals[tap], axis=0), mask=channel < channels)
    tl.store(to + WINDOW * WINDOW * channels, tl.sum(grad_bias, axis=0), mask=channel < channels)
