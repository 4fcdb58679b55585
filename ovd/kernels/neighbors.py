"""Weighted sums over the neighbors of each point of a map, channels last."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

POINTS, CHANNELS = 16, 128
"""Numbers of points of a row and of channels that a program computes at a time."""


class WeightedNeighbors(torch.autograd.Function):
    """Weighted sum of neighbors, x + sum over offsets i of weights_i * (x moved by i), with zeros beyond the border.

    It is computed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B H W D"], weights: Float[Tensor, "B H W K"], size: int
    ) -> Float[Tensor, "B H W D"]:
        """Compute the sum.

        Args:
            weights: weights of the K = size * size offsets, row by row.
            size: side of the square of offsets; odd.
        """
        x, weights = x.contiguous(), weights.contiguous()
        ctx.save_for_backward(x, weights)
        ctx.size = size
        return _launch_sum(x, weights, size, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B H W D"]) -> tuple[Tensor, Tensor, None]:
        x, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        grad_weights = torch.empty_like(weights)
        batch, height, width, dim = x.shape
        grid = (batch * height, triton.cdiv(width, POINTS))
        squares = triton.next_power_of_2(ctx.size**2)
        _products[grid](
            gradient,
            x,
            grad_weights,
            height,
            width,
            dim,
            SIZE=ctx.size,
            SQUARES=squares,
            POINTS=POINTS,
            CHANNELS=CHANNELS,
        )
        return _launch_sum(gradient, weights, ctx.size, back=True), grad_weights, None


def _launch_sum(
    x: Float[Tensor, "B H W D"], weights: Float[Tensor, "B H W K"], size: int, *, back: bool
) -> Float[Tensor, "B H W D"]:
    out = torch.empty_like(x)
    batch, height, width, dim = x.shape
    grid = (batch * height, triton.cdiv(width, POINTS), triton.cdiv(dim, CHANNELS))
    _sum[grid](x, weights, out, height, width, dim, SIZE=size, BACK=back, POINTS=POINTS, CHANNELS=CHANNELS)
    return out


@triton.jit
def _sum(
    x, weights, out, height, width, dim,
    SIZE: tl.constexpr, BACK: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute the sum; with BACK the transposed sum, in which each point collects what it gave to its neighbors."""
    row = tl.program_id(0).to(tl.int64)
    first = row - row % height
    across = tl.program_id(1) * POINTS + tl.arange(0, POINTS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (across < width)[:, None] & (channel < dim)[None, :]
    here = (row * width + across)[:, None] * dim + channel[None, :]
    total = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    for index in tl.static_range(SIZE * SIZE):
        down = index // SIZE - SIZE // 2
        right = index % SIZE - SIZE // 2
        if BACK:
            down = -down
            right = -right
        there_row = row + down
        there = across + right
        is_map = (there >= 0) & (there < width) & (there_row >= first) & (there_row < first + height)
        point = there_row * width + there
        at = point if BACK else row * width + across
        weight = tl.load(weights + at * SIZE * SIZE + index, mask=is_map & (across < width), other=0.0).to(tl.float32)
        values = tl.load(x + point[:, None] * dim + channel[None, :], mask=inside & is_map[:, None], other=0.0)
        total += weight[:, None] * values.to(tl.float32)
    tl.store(out + here, total, mask=inside)


@triton.jit
def _products(
    gradient, x, grad_weights, height, width, dim,
    SIZE: tl.constexpr, SQUARES: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = row - row % height
    across = tl.program_id(1) * POINTS + tl.arange(0, POINTS)
    square = tl.arange(0, SQUARES)
    totals = tl.zeros((POINTS, SQUARES), dtype=tl.float32)
    for start in range(0, dim, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        inside = (across < width)[:, None] & (channel < dim)[None, :]
        here = (row * width + across)[:, None] * dim + channel[None, :]
        slope = tl.load(gradient + here, mask=inside, other=0.0).to(tl.float32)
        for index in tl.static_range(SIZE * SIZE):
            down = index // SIZE - SIZE // 2
            right = index % SIZE - SIZE // 2
            there = across + right
            there_row = row + down
            is_map = (there >= 0) & (there < width) & (there_row >= first) & (there_row < first + height)
            point = (there_row * width + there)[:, None] * dim + channel[None, :]
            values = tl.load(x + point, mask=inside & is_map[:, None], other=0.0).to(tl.float32)
            product = tl.sum(slope * values, axis=1)
            totals += tl.where(square[None, :] == index, product[:, None], 0.0)
    at = (row * width + across)[:, None] * SIZE * SIZE + square[None, :]
    tl.store(grad_weights + at, totals, mask=(across < width)[:, None] & (square < SIZE * SIZE)[None, :])
