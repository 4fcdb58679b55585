"""Layer norm of rows in one pass, with sums in float32 and the output in the step's dtype."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

NUMBERS = 2048
"""Number of elements that a program computes at a time."""
PROGRAMS = 1024
"""Maximum number of programs that share the rows when gradients of weights are summed."""


class LayerNorm(torch.autograd.Function):
    """Layer norm along the last dimension."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*N C"],
        weight: Float[Tensor, " C"],
        bias: Float[Tensor, " C"],
        epsilon: float,
        dtype: torch.dtype,
    ) -> Float[Tensor, "*N C"]:
        """Compute the layer norm.

        Args:
            dtype: dtype of the output.
        """
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty(rows.shape, dtype=dtype, device=x.device)
        mean, inverse = torch.empty(2, len(rows), dtype=torch.float32, device=x.device)
        if len(rows) > 0:
            shape = _tile(rows.shape[1])
            grid = (triton.cdiv(len(rows), shape["ROWS"]),)
            _forward[grid](rows, out, weight, bias, mean, inverse, *rows.shape, epsilon, **shape)
        ctx.save_for_backward(rows, weight, mean, inverse)
        ctx.dtype = bias.dtype
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*N C"]) -> tuple[Tensor | None, ...]:
        rows, weight, mean, inverse = ctx.saved_tensors
        slopes = gradient.reshape(rows.shape).contiguous()
        shape = _tile(rows.shape[1])
        programs = min(PROGRAMS, triton.cdiv(len(rows), shape["ROWS"]))
        grad_rows = torch.empty_like(rows)
        sums = torch.empty(programs, 2, rows.shape[1], dtype=torch.float32, device=rows.device)
        if programs > 0:
            _backward[(programs,)](rows, slopes, grad_rows, weight, mean, inverse, sums, *rows.shape, **shape)
        grad_weight, grad_bias = sums.sum(dim=0)
        return grad_rows.view(gradient.shape), grad_weight.to(weight.dtype), grad_bias.to(ctx.dtype), None, None


def _tile(channels: int) -> dict[str, int]:
    """Return the numbers of rows and columns that a program computes at a time."""
    columns = triton.next_power_of_2(channels)
    return {"ROWS": max(1, NUMBERS // columns), "COLUMNS": columns}


@triton.jit
def _forward(
    x, out, weight, bias, mean, inverse, num_rows, channels, epsilon, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, COLUMNS)
    inside = (row < num_rows)[:, None] & (channel < channels)[None, :]
    at = row[:, None] * channels + channel[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    center = tl.sum(values, axis=1) / channels
    values = tl.where(inside, values - center[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=1) / channels + epsilon)
    gain = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    tl.store(out + at, values * scale[:, None] * gain[None, :] + offset[None, :], mask=inside)
    tl.store(mean + row, center, mask=row < num_rows)
    tl.store(inverse + row, scale, mask=row < num_rows)


@triton.jit
def _backward(
    x, slopes, grad_x, weight, mean, inverse, sums, num_rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    channel = tl.arange(0, COLUMNS)
    gain = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    along = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < num_rows)[:, None] & (channel < channels)[None, :]
        at = row[:, None] * channels + channel[None, :]
        center = tl.load(mean + row, mask=row < num_rows, other=0.0)
        scale = tl.load(inverse + row, mask=row < num_rows, other=0.0)
        normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[:, None]) * scale[:, None]
        normal = tl.where(inside, normal, 0.0)
        slope = tl.load(slopes + at, mask=inside, other=0.0).to(tl.float32)
        along += slope * normal
        total += slope
        slope *= gain[None, :]
        shift = tl.sum(slope, axis=1) / channels
        turn = tl.sum(slope * normal, axis=1) / channels
        slope = (slope - shift[:, None] - normal * turn[:, None]) * scale[:, None]
        tl.store(grad_x + at, slope, mask=inside)
    out = sums + tl.program_id(0) * 2 * channels + channel
    tl.store(out, tl.sum(along, axis=0), mask=channel < channels)
    tl.store(out + channels, tl.sum(total, axis=0), mask=channel < channels)
