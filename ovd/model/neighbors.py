"""Weighted sums over the neighbors of each point of a map."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ovd import kernels

_Slices = tuple[slice, slice, slice]


def add_neighbors(
    shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
) -> Float[Tensor, "B D h w"]:
    """shortcut + sum over offsets i of weights_i * (shortcut moved by i), zeros beyond the border.

    Args:
        weights: for the K = size * size offsets, row by row.
        size: side of the square of offsets; odd.
    """
    if kernels.applies_to(shortcut):
        from ovd.kernels.neighbors import WeightedNeighbors

        filtered = WeightedNeighbors.apply(shortcut.permute(0, 2, 3, 1), weights.permute(0, 2, 3, 1), size)
        return filtered.permute(0, 3, 1, 2)
    if torch.jit.is_tracing():
        return _of_any_size(shortcut, weights, size)
    return _WeightedNeighbors.apply(shortcut, weights, size)


def _of_any_size(
    shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
) -> Float[Tensor, "B D h w"]:
    """The same by operations that a traced graph holds for maps of any size."""
    height, width = shortcut.shape[2:]
    padded = F.pad(shortcut, (size // 2,) * 4)
    filtered = shortcut
    for index in range(size * size):
        dy, dx = divmod(index, size)
        filtered = filtered + weights[:, index : index + 1] * padded[:, :, dy : dy + height, dx : dx + width]
    return filtered


class _WeightedNeighbors(torch.autograd.Function):
    """shortcut + sum over offsets i of weights_i * (shortcut moved by i), zeros beyond the border.

    The gradient is written out, since autograd would keep a copy of the shortcut for every offset, which takes a fifth
    of a training step.
    """

    @staticmethod
    def forward(
        ctx: Any, shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
    ) -> Float[Tensor, "B D h w"]:
        ctx.save_for_backward(shortcut, weights)
        ctx.size = size
        last = shortcut.permute(0, 2, 3, 1)  # channels last, which is the layout in bf16 already
        filtered = last.clone(memory_format=torch.contiguous_format)
        for index, (here, there) in enumerate(_shifts(shortcut.shape[2], shortcut.shape[3], size)):
            filtered[here].addcmul_(weights[:, index, :, :, None][here], last[there])
        return filtered.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, None]:
        shortcut, weights = ctx.saved_tensors
        last, slope = shortcut.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        of_shortcut = slope.clone(memory_format=torch.contiguous_format)
        of_weights = torch.zeros_like(weights)
        for index, (here, there) in enumerate(_shifts(shortcut.shape[2], shortcut.shape[3], ctx.size)):
            of_shortcut[there].addcmul_(weights[:, index, :, :, None][here], slope[here])
            of_weights[:, index][here] = (slope[here] * last[there]).sum(dim=-1)
        return of_shortcut.permute(0, 3, 1, 2), of_weights, None


def _shifts(height: int, width: int, size: int) -> Iterator[tuple[_Slices, _Slices]]:
    """Yield, for every offset in a square of side `size`, the points with a neighbor at it, and those neighbors."""

    def along(length: int, offset: int) -> tuple[slice, slice]:
        low, high = max(0, -offset), max(0, length - max(0, offset))
        return slice(low, max(low, high)), slice(low + offset, max(low, high) + offset)

    for dy in range(-(size // 2), size // 2 + 1):
        for dx in range(-(size // 2), size // 2 + 1):
            (y, y_there), (x, x_there) = along(height, dy), along(width, dx)
            yield (slice(None), y, x), (slice(None), y_there, x_there)
