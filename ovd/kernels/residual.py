"""The end of a residual branch in one pass: its last bias, its factors per channel and per image, and the shortcut."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, CHANNELS = 32, 64
"""Numbers of points and of channels that a program computes at a time."""
PROGRAMS_PER_IMAGE = 32
"""Maximum number of programs that share a block of channels of an image."""


class ScaledResidual(torch.autograd.Function):
    """Sum of shortcut and scaled branch, shortcut + (x + bias) * gain * factor, channels last, in the dtype of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B H W C"],
        bias: Float[Tensor, " C"],
        gain: Float[Tensor, " C"],
        factor: Float[Tensor, " B"],
        shortcut: Float[Tensor, "B H W C"],
    ) -> Float[Tensor, "B H W C"]:
        """Compute the sum.

        Args:
            factor: factor of each image's branch, 0 where stochastic depth drops it; it gets no gradient.
        """
        x, shortcut = x.contiguous(), shortcut.contiguous()
        out = torch.empty_like(x)
        num_points, channels = x.shape[1] * x.shape[2], x.shape[3]
        _forward[_grid(x.shape)](
            x, bias, gain, factor, shortcut, out, num_points, channels, ROWS=ROWS, CHANNELS=CHANNELS
        )  # fmt: skip
        ctx.save_for_backward(x, bias, gain, factor)
        ctx.dtype = shortcut.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B H W C"]) -> tuple[Tensor | None, ...]:
        x, bias, gain, factor = ctx.saved_tensors
        gradient = gradient.contiguous()
        num_points, channels = x.shape[1] * x.shape[2], x.shape[3]
        grid = _grid(x.shape)
        grad_x = torch.empty_like(x)
        sums = torch.empty(2, grid[0], grid[1], channels, dtype=torch.float32, device=x.device)
        _backward[grid](
            gradient, x, bias, gain, factor, grad_x, sums, num_points, channels, ROWS=ROWS, CHANNELS=CHANNELS
        )  # fmt: skip
        grad_bias, grad_gain = sums.sum(dim=(1, 2))
        return grad_x, grad_bias.to(bias.dtype), grad_gain.to(gain.dtype), None, gradient.to(ctx.dtype)


def _grid(shape: torch.Size) -> tuple[int, int, int]:
    batch, height, width, channels = shape
    programs = max(1, min(PROGRAMS_PER_IMAGE, triton.cdiv(height * width, ROWS)))
    return batch, programs, triton.cdiv(channels, CHANNELS)


@triton.jit
def _forward(
    x, bias, gain, factor, shortcut, out, num_points, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    offset = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    scale = tl.load(gain + channel, mask=channel < channels, other=0.0).to(tl.float32) * tl.load(factor + image)
    for start in range(tl.program_id(1) * ROWS, num_points, tl.num_programs(1) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = (image * num_points + row)[:, None] * channels + channel[None, :]
        inside = (row < num_points)[:, None] & (channel < channels)[None, :]
        values = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + offset[None, :]) * scale[None, :]
        values += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, values, mask=inside)


@triton.jit
def _backward(
    gradient, x, bias, gain, factor, grad_x, sums, num_points, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    of_image = tl.load(factor + image)
    offset = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    scale = tl.load(gain + channel, mask=channel < channels, other=0.0).to(tl.float32) * of_image
    total = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    along = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    for start in range(tl.program_id(1) * ROWS, num_points, tl.num_programs(1) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = (image * num_points + row)[:, None] * channels + channel[None, :]
        inside = (row < num_points)[:, None] & (channel < channels)[None, :]
        slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + offset[None, :]
        tl.store(grad_x + at, slope * scale[None, :], mask=inside)
        total += slope * scale[None, :]
        along += slope * values
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    programs = tl.num_programs(0) * tl.num_programs(1)
    to = sums + program.to(tl.int64) * channels + channel
    tl.store(to, tl.sum(total, axis=0), mask=channel < channels)
    to += programs.to(tl.int64) * channels
    tl.store(to, tl.sum(along, axis=0) * of_image, mask=channel < channels)
