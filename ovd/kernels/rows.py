"""Normalization of rows to unit length, and concatenation of the points of several maps."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class NormalizeRows(torch.autograd.Function):
    """Normalization along the last dimension, x / max(length, epsilon), in the dtype of x with sums in float32."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*N D"], epsilon: float) -> Float[Tensor, "*N D"]:
        rows = _with_dense_rows(x.reshape(-1, x.shape[-1]))
        unit = torch.empty_like(rows, memory_format=torch.contiguous_format)
        inverse = torch.empty(len(rows), dtype=torch.float32, device=x.device)
        if len(rows) > 0:
            block = triton.next_power_of_2(rows.shape[1])
            _forward[(len(rows),)](rows, unit, inverse, rows.stride(0), rows.shape[1], epsilon, BLOCK=block)
        ctx.save_for_backward(unit, inverse)
        return unit.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*N D"]) -> tuple[Float[Tensor, "*N D"], None]:
        unit, inverse = ctx.saved_tensors
        slopes = _with_dense_rows(gradient.reshape(unit.shape))
        grad_rows = torch.empty_like(unit)
        if len(unit) > 0:
            block = triton.next_power_of_2(unit.shape[1])
            _backward[(len(unit),)](slopes, unit, inverse, grad_rows, slopes.stride(0), unit.shape[1], BLOCK=block)
        return grad_rows.view(gradient.shape), None


def _with_dense_rows(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Return x with each row contiguous, which the gradient of a sum, a single number expanded to all, is not."""
    return x if x.stride(1) == 1 else x.contiguous()


@triton.jit
def _forward(x, unit, inverse, stride, dim, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    values = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0 / tl.maximum(tl.sqrt(tl.sum(values * values, axis=0)), epsilon)
    tl.store(unit + row * dim + column, values * factor, mask=inside)
    tl.store(inverse + row, factor)


@triton.jit
def _backward(slopes, unit, inverse, grad_rows, stride, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    slope = tl.load(slopes + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    direction = tl.load(unit + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(slope * direction, axis=0)
    tl.store(grad_rows + row * dim + column, (slope - along * direction) * tl.load(inverse + row), mask=inside)


class ConcatenateLevels(torch.autograd.Function):
    """Concatenation of the points of several maps; the gradient of each map is dense."""

    @staticmethod
    def forward(ctx: Any, *maps: Float[Tensor, "B H W D"]) -> Float[Tensor, "B P D"]:
        ctx.shapes = [x.shape for x in maps]
        return torch.cat([x.flatten(1, 2) for x in maps], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B P D"]) -> tuple[Float[Tensor, "B H W D"], ...]:
        gradient = gradient.contiguous()
        num_points, dim = gradient.shape[1:]
        first, parts = 0, []
        for shape in ctx.shapes:
            part = gradient.new_empty(shape)
            size = shape[1] * shape[2]
            if part.numel() > 0:
                block = triton.next_power_of_2(dim)
                _take[(shape[0] * size,)](gradient, part, size, num_points, first, dim, BLOCK=block)
            parts.append(part)
            first += size
        return tuple(parts)


@triton.jit
def _take(rows, part, size, num_points, first, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    source = row // size * num_points + first + row % size
    values = tl.load(rows + source * dim + column, mask=column < dim)
    tl.store(part + row * dim + column, values, mask=column < dim)
