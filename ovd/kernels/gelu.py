"""The bias of a linear layer and the exact GELU after it in one pass; the backward pass also sums the bias gradient."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, CHANNELS = 32, 64
"""Numbers of rows and of channels that a program computes at a time."""
PROGRAMS = 256
"""Maximum number of programs that share a block of channels."""


class BiasGelu(torch.autograd.Function):
    """Exact GELU of a sum, gelu(x + bias)."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*N C"], bias: Float[Tensor, " C"]) -> Float[Tensor, "*N C"]:
        x = x.contiguous()
        num_rows, channels = x.numel() // len(bias), len(bias)
        out = torch.empty_like(x)
        _forward[_grid(num_rows, channels)](x, bias, out, num_rows, channels, ROWS=ROWS, CHANNELS=CHANNELS)
        ctx.save_for_backward(x, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*N C"]) -> tuple[Float[Tensor, "*N C"], Float[Tensor, " C"]]:
        x, bias = ctx.saved_tensors
        num_rows, channels = x.numel() // len(bias), len(bias)
        grid = _grid(num_rows, channels)
        grad_x = torch.empty_like(x)
        sums = torch.empty(grid[0], channels, dtype=torch.float32, device=x.device)
        _backward[grid](
            gradient.contiguous(), x, bias, grad_x, sums, num_rows, channels, ROWS=ROWS, CHANNELS=CHANNELS
        )  # fmt: skip
        return grad_x, sums.sum(dim=0).to(bias.dtype)


def _grid(num_rows: int, channels: int) -> tuple[int, int]:
    return max(1, min(PROGRAMS, triton.cdiv(num_rows, ROWS))), triton.cdiv(channels, CHANNELS)


@triton.jit
def _below(x):
    """Compute the share of a standard normal distribution below x."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _forward(x, bias, out, num_rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    offset = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        inside = (row < num_rows)[:, None] & (channel < channels)[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + offset[None, :]
        tl.store(out + at, values * _below(values), mask=inside)


@triton.jit
def _backward(gradient, x, bias, grad_x, sums, num_rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    offset = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        inside = (row < num_rows)[:, None] & (channel < channels)[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + offset[None, :]
        density = 0.3989422804014327 * tl.exp(-0.5 * values * values)
        slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        slope *= _below(values) + values * density
        tl.store(grad_x + at, slope, mask=inside)
        total += slope
    tl.store(sums + tl.program_id(0) * channels + channel, tl.sum(total, axis=0), mask=channel < channels)
