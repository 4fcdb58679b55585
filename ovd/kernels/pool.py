"""Average pooling over cells of 2 x 2 points, channels last."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CELLS, CHANNELS = 32, 64
"""Numbers of cells of a row and of channels that a program computes at a time."""


class AvgPool2x2(torch.autograd.Function):
    """Average pooling, `avg_pool2d(x, 2)`: with an odd side, the last row or column is in no cell."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        out = torch.empty(
            (batch, channels, height // 2, width // 2),
            dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
        )  # fmt: skip
        ctx.shape = x.shape
        if out.numel() > 0:
            _forward[_grid(out.shape)](x, out, height, width, channels, CELLS=CELLS, CHANNELS=CHANNELS)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        _, channels, height, width = ctx.shape
        out = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        if height % 2 or width % 2:
            out.zero_()  # the last row or column is in no cell
        if gradient.numel() > 0:
            _backward[_grid(gradient.shape)](gradient, out, height, width, channels, CELLS=CELLS, CHANNELS=CHANNELS)
        return out


def _grid(shape: torch.Size) -> tuple[int, int, int]:
    batch, channels, height, width = shape
    return (batch * height, triton.cdiv(width, CELLS), triton.cdiv(channels, CHANNELS))


@triton.jit
def _forward(x, out, height, width, channels, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (cell < width // 2)[:, None] & (channel < channels)[None, :]
    top = (row // (height // 2) * height + row % (height // 2) * 2) * width
    at = (top + cell * 2)[:, None] * channels + channel[None, :]
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(x + at + channels, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(x + at + width * channels, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(x + at + width * channels + channels, mask=inside, other=0.0).to(tl.float32)
    to = (row * (width // 2) + cell)[:, None] * channels + channel[None, :]
    tl.store(out + to, total * 0.25, mask=inside)


@triton.jit
def _backward(gradient, out, height, width, channels, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (cell < width // 2)[:, None] & (channel < channels)[None, :]
    source = (row * (width // 2) + cell)[:, None] * channels + channel[None, :]
    quarter = tl.load(gradient + source, mask=inside, other=0.0).to(tl.float32) * 0.25
    top = (row // (height // 2) * height + row % (height // 2) * 2) * width
    at = (top + cell * 2)[:, None] * channels + channel[None, :]
    tl.store(out + at, quarter, mask=inside)
    tl.store(out + at + channels, quarter, mask=inside)
    tl.store(out + at + width * channels, quarter, mask=inside)
    tl.store(out + at + width * channels + channels, quarter, mask=inside)
