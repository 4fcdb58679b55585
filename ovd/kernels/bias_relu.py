"""The bias of a convolution, a shortcut that is added, and ReLU, in place and in one pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, CHANNELS = 32, 64
"""Numbers of points and of channels that a program computes at a time."""
PROGRAMS = 512
"""Maximum number of programs that share a block of channels."""


class BiasRelu(torch.autograd.Function):
    """Sum of x, bias and an optional shortcut, with an optional ReLU; overwrites x, which is channels last."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B C h w"],
        bias: Float[Tensor, " C"],
        shortcut: Float[Tensor, "B C h w"] | None,
        relu: bool,
    ) -> Float[Tensor, "B C h w"]:
        assert x.is_contiguous(memory_format=torch.channels_last)
        num_points, channels = x.numel() // x.shape[1], x.shape[1]
        other = x if shortcut is None else shortcut.contiguous(memory_format=torch.channels_last)
        grid = (min(PROGRAMS, triton.cdiv(num_points, ROWS)), triton.cdiv(channels, CHANNELS))
        _forward[grid](
            x, bias, other, num_points, channels, ADDED=shortcut is not None, RELU=relu, ROWS=ROWS, CHANNELS=CHANNELS
        )
        ctx.mark_dirty(x)
        ctx.save_for_backward(x if relu else None)
        ctx.relu, ctx.dtype, ctx.added = relu, bias.dtype, shortcut is not None
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B C h w"]) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        num_points, channels = gradient.numel() // gradient.shape[1], gradient.shape[1]
        programs = min(PROGRAMS, triton.cdiv(num_points, ROWS))
        sums = torch.empty(programs, channels, dtype=torch.float32, device=gradient.device)
        grad_x = torch.empty_like(gradient) if ctx.relu else gradient
        _backward[(programs, triton.cdiv(channels, CHANNELS))](
            gradient, gradient if out is None else out, grad_x, sums, num_points, channels,
            RELU=ctx.relu, ROWS=ROWS, CHANNELS=CHANNELS,
        )  # fmt: skip
        return grad_x, sums.sum(dim=0).to(ctx.dtype), grad_x if ctx.added else None, None


@triton.jit
def _forward(
    x, bias, other, num_points, channels,
    ADDED: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    offset = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_points, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        inside = (row < num_points)[:, None] & is_channel[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + offset[None, :]
        if ADDED:
            values += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(x + at, values, mask=inside)


@triton.jit
def _backward(
    gradient, out, grad_x, sums, num_points, channels,
    RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_points, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        inside = (row < num_points)[:, None] & is_channel[None, :]
        slope = tl.load(gradient + at, mask=inside, other=0.0)
        if RELU:
            slope = tl.where(tl.load(out + at, mask=inside, other=0.0) <= 0, 0.0, slope)
            tl.store(grad_x + at, slope, mask=inside)
        total += tl.sum(slope.to(tl.float32), axis=0)
    tl.store(sums + tl.program_id(0) * channels + channel, total, mask=is_channel)
