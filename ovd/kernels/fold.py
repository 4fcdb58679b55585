"""Folding of a batch norm with fixed statistics into the convolution before it, in one kernel launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024


class FoldNorm(torch.autograd.Function):
    """Weight times the norm's scale, in another dtype, and the remaining bias, in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Float[Tensor, "K ..."],
        gain: Float[Tensor, " K"],
        offset: Float[Tensor, " K"],
        mean: Float[Tensor, " K"],
        variance: Float[Tensor, " K"],
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "K ..."], Float[Tensor, " K"]]:
        """Fold the norm.

        Args:
            weight: weight of a convolution, in any memory format.
            gain, offset, mean, variance: parameters and statistics of the norm.
            epsilon: number added to the variance.
            dtype: dtype of the folded weight.
        """
        folded = torch.empty_like(weight, dtype=dtype)
        bias = torch.empty_like(offset)
        size = weight[0].numel()
        _fold[(len(weight),)](weight, gain, offset, mean, variance, folded, bias, epsilon, size, BLOCK=BLOCK)
        ctx.save_for_backward(weight, gain, mean, variance)
        ctx.epsilon = epsilon
        return folded, bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_folded: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
        weight, gain, mean, variance = ctx.saved_tensors
        # Every memory format of a dense weight keeps the numbers of an output channel together, as the first dimension.
        grad_folded, grad_bias = grad_folded.contiguous(memory_format=_format(weight)), grad_bias.contiguous()
        grad_weight, grad_gain = torch.empty_like(weight), torch.empty_like(gain)
        size = weight[0].numel()
        _unfold[(len(weight),)](
            weight, gain, mean, variance, grad_folded, grad_bias, grad_weight, grad_gain, ctx.epsilon, size, BLOCK=BLOCK
        )
        return grad_weight, grad_gain, grad_bias, None, None, None, None


def _format(weight: Tensor) -> torch.memory_format:
    is_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


@triton.jit
def _fold(weight, gain, offset, mean, variance, folded, bias, epsilon, size, BLOCK: tl.constexpr):
    channel = tl.program_id(0).to(tl.int64)
    scale = tl.load(gain + channel) / tl.sqrt(tl.load(variance + channel) + epsilon)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < size
        values = tl.load(weight + channel * size + column, mask=inside, other=0.0)
        tl.store(folded + channel * size + column, values * scale, mask=inside)
    tl.store(bias + channel, tl.load(offset + channel) - tl.load(mean + channel) * scale)


@triton.jit
def _unfold(
    weight, gain, mean, variance, grad_folded, grad_bias, grad_weight, grad_gain, epsilon, size, BLOCK: tl.constexpr
):
    channel = tl.program_id(0).to(tl.int64)
    inverse = 1.0 / tl.sqrt(tl.load(variance + channel) + epsilon)
    scale = tl.load(gain + channel) * inverse
    products = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < size
        slope = tl.load(grad_folded + channel * size + column, mask=inside, other=0.0).to(tl.float32)
        products += slope * tl.load(weight + channel * size + column, mask=inside, other=0.0)
        tl.store(grad_weight + channel * size + column, slope * scale, mask=inside)
    grad_scale = tl.sum(products, axis=0) - tl.load(grad_bias + channel) * tl.load(mean + channel)
    tl.store(grad_gain + channel, grad_scale * inverse)
