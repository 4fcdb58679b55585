"""A convolution of several small maps, such as the coarse levels of a pyramid, as one matrix product.

In training on a CPU oneDNN converts the weight to its own layout for each map, and the gradient back, which takes
several times as long as the convolution of a few cells. Here each cell's neighbors are gathered instead, for all maps
together.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_CELLS = 512
"""Number of cells up to which a map is small, counted over the batch."""


def is_small(x: Float[Tensor, "B C h w"]) -> bool:
    """Return whether a map has at most `MAX_CELLS` cells."""
    return x.shape[0] * x.shape[2] * x.shape[3] <= MAX_CELLS


def convolve_small_maps(
    maps: Sequence[Float[Tensor, "B C ..."]], weight: Float[Tensor, "K C s s"], bias: Float[Tensor, " K"]
) -> list[Float[Tensor, "B K ..."]]:
    """Convolve each map, with a padding of zeros that keeps its size.

    Args:
        maps: at least one map, in the dtype of weight and bias.
        weight: weight with an odd kernel size s.
    """
    sizes = tuple((one.shape[2], one.shape[3]) for one in maps)
    neighbors = _neighbors(len(maps[0]), sizes, weight.shape[-1]).to(weight.device)
    rows = torch.cat([one.permute(0, 2, 3, 1).flatten(0, 2) for one in maps])
    results = _ConvolveRows.apply(rows, weight, bias, neighbors).split([one[:, 0].numel() for one in maps])
    return [
        result.view(-1, *size, len(weight)).permute(0, 3, 1, 2) for result, size in zip(results, sizes, strict=True)
    ]


@lru_cache(maxsize=64)
def _neighbors(batch_size: int, sizes: tuple[tuple[int, int], ...], side: int) -> Int[Tensor, "N K"]:
    """Return the rows of the cells in a square around each cell, row by row; N beyond the border.

    Args:
        sizes: height and width of the maps whose cells are the N rows, map by map and image by image.
        side: side of the square.
    """
    margin, first, parts = side // 2, 0, []
    total = batch_size * sum(height * width for height, width in sizes)
    for height, width in sizes:
        rows = torch.full((batch_size, height + 2 * margin, width + 2 * margin), total)
        last = first + batch_size * height * width
        own = torch.arange(first, last).view(batch_size, height, width)
        rows[:, margin : margin + height, margin : margin + width] = own
        parts.append(rows.unfold(1, side, 1).unfold(2, side, 1).reshape(-1, side * side))
        first = last
    return torch.cat(parts)


class _ConvolveRows(torch.autograd.Function):
    """Convolution of maps whose cells are rows, from the rows of each cell's neighbors."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "N C"],
        weight: Float[Tensor, "K C s s"],
        bias: Float[Tensor, " K"],
        neighbors: Int[Tensor, "N ss"],
    ) -> Float[Tensor, "N K"]:
        columns = _gather(rows, neighbors)
        ctx.save_for_backward(columns, weight, neighbors)
        return torch.addmm(bias, columns, weight.permute(2, 3, 1, 0).flatten(0, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "N K"]) -> tuple[Tensor, Tensor, Tensor, None]:
        columns, weight, neighbors = ctx.saved_tensors
        outputs, inputs, side, _ = weight.shape
        weight_gradient = (gradient.T @ columns).view(outputs, side, side, inputs).permute(0, 3, 1, 2)
        # A cell is the neighbor of its neighbors, at the opposite offset.
        row_gradient = _gather(gradient, neighbors.flip(1)) @ weight.permute(2, 3, 0, 1).flatten(0, 2)
        return row_gradient, weight_gradient, gradient.sum(dim=0), None


def _gather(rows: Float[Tensor, "N C"], neighbors: Int[Tensor, "N ss"]) -> Float[Tensor, "N ssC"]:
    """Concatenate the rows of each cell's neighbors; zeros beyond the border."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded.index_select(0, neighbors.flatten()).view(len(neighbors), -1)
