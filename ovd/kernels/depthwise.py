"""A depthwise convolution of channels-last maps, which torch's libraries compute at a small share of the bandwidth."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SIDE, CHANNELS = 8, 32
"""Side of the square of points, and channels, that a program computes."""
POINTS, SUMMED_CHANNELS, PROGRAMS = 4, 64, 128
"""Points and channels at a time, and programs that share the points, when the weight's gradient is summed."""


class DepthwiseShortcut(torch.autograd.Function):
    """The convolution with an odd window, stride 1 and zeros around, and its input as the shortcut around it.

    Both gradients of the input are added in the pass that computes the convolution's.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B H W C"], weight: Float[Tensor, "C 1 K K"], bias: Float[Tensor, " C"]
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B H W C"]]:
        x = x.contiguous()
        taps = weight.flatten(1).t().contiguous()  # K * K C
        out = torch.empty_like(x)
        _convolve[_grid(x.shape)](
            x, taps, bias, x, out, *x.shape[1:], WINDOW=weight.shape[-1], FLIP=False, ADDED=False,
            SIDE=SIDE, CHANNELS=CHANNELS,
        )  # fmt: skip
        ctx.save_for_backward(x, taps)
        ctx.shape, ctx.dtype = weight.shape, bias.dtype
        return out, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "B H W C"], of_shortcut: Float[Tensor, "B H W C"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        gradient, of_shortcut = gradient.contiguous(), of_shortcut.contiguous()
        batch, height, width, channels = x.shape
        window = ctx.shape[-1]
        of_x = torch.empty_like(x)
        _convolve[_grid(x.shape)](
            gradient, taps, taps, of_shortcut, of_x, height, width, channels, WINDOW=window, FLIP=True, ADDED=True,
            SIDE=SIDE, CHANNELS=CHANNELS,
        )  # fmt: skip
        programs = min(PROGRAMS, triton.cdiv(batch * height * width, POINTS))
        sums = torch.empty(programs, window * window + 1, channels, dtype=torch.float32, device=x.device)
        _sum_taps[(window, programs, triton.cdiv(channels, SUMMED_CHANNELS))](
            gradient, x, sums, batch * height * width, height, width, channels,
            WINDOW=window, ACROSS=triton.next_power_of_2(window), POINTS=POINTS, CHANNELS=SUMMED_CHANNELS,
        )  # fmt: skip
        total = sums.sum(dim=0)
        return of_x, total[:-1].t().reshape(ctx.shape).to(taps.dtype), total[-1].to(ctx.dtype)


def _grid(shape: torch.Size) -> tuple[int, int, int]:
    batch, height, width, channels = shape
    return triton.cdiv(height, SIDE) * triton.cdiv(width, SIDE), triton.cdiv(channels, CHANNELS), batch


@triton.jit
def _convolve(
    x, taps, bias, added, out, height, width, channels,
    WINDOW: tl.constexpr, FLIP: tl.constexpr, ADDED: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(width, SIDE)
    point = tl.arange(0, SIDE * SIDE)
    top = tl.program_id(0) // tiles * SIDE + point // SIDE
    left = tl.program_id(0) % tiles * SIDE + point % SIDE
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = (channel < channels)[None, :]
    first = tl.program_id(2).to(tl.int64) * height * width
    total = tl.zeros((SIDE * SIDE, CHANNELS), dtype=tl.float32)
    for down in range(WINDOW):
        row = top + down - WINDOW // 2
        for across in tl.static_range(WINDOW):
            column = left + across - WINDOW // 2
            tap = down * WINDOW + across
            if FLIP:
                tap = WINDOW * WINDOW - 1 - tap
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = (first + row * width + column)[:, None] * channels + channel[None, :]
            values = tl.load(x + at, mask=inside[:, None] & is_channel, other=0.0).to(tl.float32)
            factor = tl.load(taps + tap * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)
            total += values * factor[None, :]
    to = (first + top * width + left)[:, None] * channels + channel[None, :]
    inside = ((top < height) & (left < width))[:, None] & is_channel
    if ADDED:
        total += tl.load(added + to, mask=inside, other=0.0).to(tl.float32)
    else:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(out + to, total, mask=inside)


@triton.jit
def _sum_taps(
    gradient, x, sums, num_points, height, width, channels,
    WINDOW: tl.constexpr, ACROSS: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    down = tl.program_id(0) - WINDOW // 2
    across = tl.arange(0, ACROSS) - WINDOW // 2
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    is_tap = (across <= WINDOW // 2)[None, :]
    of_taps = tl.zeros((POINTS, ACROSS, CHANNELS), dtype=tl.float32)
    of_bias = tl.zeros((POINTS, CHANNELS), dtype=tl.float32)
    for start in range(tl.program_id(1) * POINTS, num_points, tl.num_programs(1) * POINTS):
        point = start + tl.arange(0, POINTS)
        is_point = point < num_points
        row = point // width % height + down
        column = (point % width)[:, None] + across[None, :]
        inside = (is_point & (row >= 0) & (row < height))[:, None] & (column >= 0) & (column < width) & is_tap
        at = point.to(tl.int64)[:, None] * channels + channel[None, :]
        slope = tl.load(gradient + at, mask=is_point[:, None] & is_channel[None, :], other=0.0).to(tl.float32)
        of_bias += slope
        source = (point.to(tl.int64) + down * width)[:, None] + across[None, :]
        source = source[:, :, None] * channels + channel[None, None, :]
        values = tl.load(x + source, mask=inside[:, :, None] & is_channel[None, None, :], other=0.0).to(tl.float32)
        of_taps += slope[:, None, :] * values
    first = tl.program_id(1).to(tl.int64) * (WINDOW * WINDOW + 1)
    to = (first + tl.program_id(0) * WINDOW + tl.arange(0, ACROSS))[:, None] * channels + channel[None, :]
    inside = (tl.arange(0, ACROSS) < WINDOW)[:, None] & is_channel[None, :]
    tl.store(sums + to, tl.sum(of_taps, axis=0), mask=inside)
    is_first = is_channel & (tl.program_id(0) == 0)
    tl.store(sums + (first + WINDOW * WINDOW) * channels + channel, tl.sum(of_bias, axis=0), mask=is_first)
