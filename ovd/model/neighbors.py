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

MAX_BAND_WIDTH = 128
"""Number of points of a line up to which products with band matrices, of quadratic cost, are faster than sums."""


def add_weighted_neighbors(
    shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
) -> Float[Tensor, "B D h w"]:
    """Compute shortcut + sum over offsets i of weights_i * (shortcut moved by i), zeros beyond the border.

    Args:
        weights: weights of the K = size * size offsets, row by row.
        size: side of the square of offsets; odd.
    """
    if kernels.supports(shortcut):
        from ovd.kernels.neighbors import WeightedNeighbors

        filtered = WeightedNeighbors.apply(shortcut.permute(0, 2, 3, 1), weights.permute(0, 2, 3, 1), size)
        return filtered.permute(0, 3, 1, 2)
    if torch.jit.is_tracing():
        return _traceable(shortcut, weights, size)
    weights = weights.to(shortcut.dtype)
    if not torch.is_grad_enabled() and shortcut.dtype == torch.bfloat16 and shortcut.shape[3] <= MAX_BAND_WIDTH:
        return _with_bands(shortcut, weights, size)
    return _WeightedNeighbors.apply(shortcut, weights, size)


def _traceable(
    shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
) -> Float[Tensor, "B D h w"]:
    """Compute `add_weighted_neighbors` with operations that a traced graph keeps for maps of any size."""
    height, width = shortcut.shape[2:]
    padded = F.pad(shortcut, (size // 2,) * 4)
    filtered = shortcut
    for index in range(size * size):
        dy, dx = divmod(index, size)
        filtered = filtered + weights[:, index : index + 1] * padded[:, :, dy : dy + height, dx : dx + width]
    return filtered


def _with_bands(
    shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
) -> Float[Tensor, "B D h w"]:
    """Compute `add_weighted_neighbors` as products of band matrices with the lines around each line of points."""
    batch, channels, height, width = shortcut.shape
    lines = shortcut.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
    weights = weights.view(batch, size, size, height, width)
    filtered = lines.clone()
    for row, ((line, other), (y, _)) in enumerate(
        zip(_offsets_along_side(len(lines), size), _offsets_along_side(height, size), strict=True)
    ):
        # Beyond an image's border the stacked lines of all images hold another image's line; its weights stay zero.
        bands = weights.new_zeros(batch, height, width, width)
        for column, (x, _) in enumerate(_offsets_along_side(width, size)):
            bands[:, y].diagonal(column - size // 2, 2, 3).copy_(weights[:, row, column, y, x])
        filtered[line].baddbmm_(bands.flatten(0, 1)[line], lines[other])
    return filtered.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _WeightedNeighbors(torch.autograd.Function):
    """Autograd function of `add_weighted_neighbors`, with a gradient written by hand.

    Autograd would keep a copy of the shortcut for every offset, which takes a fifth of a training step.
    """

    @staticmethod
    def forward(
        ctx: Any, shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
    ) -> Float[Tensor, "B D h w"]:
        ctx.save_for_backward(shortcut, weights)
        ctx.size = size
        last = shortcut.permute(0, 2, 3, 1)  # channels last, which is already the layout in bf16
        filtered = last.clone(memory_format=torch.contiguous_format)
        for index, (points, neighbors) in enumerate(_offsets_in_square(shortcut.shape[2], shortcut.shape[3], size)):
            filtered[points].addcmul_(weights[:, index, :, :, None][points], last[neighbors])
        return filtered.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, None]:
        shortcut, weights = ctx.saved_tensors
        # The gradient of a level is a part of that of all points, so its images are not next to each other.
        last, slope = shortcut.permute(0, 2, 3, 1).contiguous(), gradient.permute(0, 2, 3, 1).contiguous()
        grad_shortcut = slope.clone()
        for index, (points, neighbors) in enumerate(_offsets_in_square(shortcut.shape[2], shortcut.shape[3], ctx.size)):
            grad_shortcut[neighbors].addcmul_(weights[:, index, :, :, None][points], slope[points])
        return grad_shortcut.permute(0, 3, 1, 2), _products(slope, last, ctx.size), None


def _products(
    points: Float[Tensor, "B h w D"], others: Float[Tensor, "B h w D"], size: int
) -> Float[Tensor, "B K h w"]:
    """Compute the scalar product of each point with each of its neighbors in another map, zero beyond the border."""
    batch, height, width, _ = points.shape
    products = points.new_zeros(batch * height, size, size, width)
    is_inside = torch.zeros(height, size, dtype=torch.bool, device=points.device)
    for row, ((line, other), (y, _)) in enumerate(
        zip(_offsets_along_side(len(products), size), _offsets_along_side(height, size), strict=True)
    ):
        # One product of all pairs of points of a line and of the line at this offset; its diagonals are the results.
        pairs = torch.bmm(points.flatten(0, 1)[line], others.flatten(0, 1)[other].transpose(1, 2))
        for column, (x, _) in enumerate(_offsets_along_side(width, size)):
            products[line, row, column, x] = pairs.diagonal(column - size // 2, 1, 2)[:, : x.stop - x.start]
        is_inside[y, row] = True
    # Beyond an image's border the stacked lines of all images held another image's line.
    products = products.view(batch, height, size, size, width).masked_fill_(~is_inside[..., None, None], 0)
    return products.permute(0, 2, 3, 1, 4).reshape(batch, size * size, height, width)


def _offsets_in_square(height: int, width: int, size: int) -> Iterator[tuple[_Slices, _Slices]]:
    """Yield, for every offset in a square of side `size`, the points with a neighbor at it, and those neighbors."""
    for y, y_neighbors in _offsets_along_side(height, size):
        for x, x_neighbors in _offsets_along_side(width, size):
            yield (slice(None), y, x), (slice(None), y_neighbors, x_neighbors)


def _offsets_along_side(length: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield, for every offset along a side of this length, the points with a neighbor at it, and those neighbors."""
    for offset in range(-(size // 2), size // 2 + 1):
        low = max(0, -offset)
        high = max(low, length - max(0, offset))
        yield slice(low, high), slice(low + offset, high + offset)
