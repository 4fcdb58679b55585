"""Group norm (Wu and He 2018): its statistics do not depend on the batch, which is small in detection."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ovd import kernels

CHANNELS_PER_GROUP = 8
LARGE_MAP = 1024
"""Number of points of a map from which torch's CPU kernel is also fast in bfloat16."""


class GroupNorm(nn.GroupNorm):
    """Group norm with an optional ReLU, fast for bfloat16 with channels last."""

    def __init__(self, channels: int, *, num_groups: int | None = None, relu: bool = False):
        super().__init__(num_groups or channels // CHANNELS_PER_GROUP, channels)
        self.relu = relu

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        is_power = x.shape[1] & (x.shape[1] - 1) == 0
        if is_power and kernels.supports_map(x):
            from ovd.kernels.group_norm import GroupNormRelu

            return GroupNormRelu.apply(x, self.weight, self.bias, self.num_groups, self.eps, self.relu)
        is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not is_traced:
            given = x, self.weight, self.bias, self.num_groups, self.eps
            normal = _GroupNormOfBFloat16.apply(*given) if torch.is_grad_enabled() else _normalized(*given)[0]
        else:
            normal = super().forward(x)
        return F.relu(normal, inplace=True) if self.relu else normal


def _normalized(
    x: Float[Tensor, "B C h w"], weight: Float[Tensor, " C"], bias: Float[Tensor, " C"], num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalized map, and the mean and inverse deviation of each group; small maps go through float32."""
    batch_size, channels, height, width = x.shape
    given = x if height * width >= LARGE_MAP else x.float()
    normal, mean, inverse = torch.native_group_norm(
        given, weight, bias, batch_size, channels, height * width, num_groups, eps
    )
    return normal.to(x.dtype), mean, inverse


class _GroupNormOfBFloat16(torch.autograd.Function):
    """Group norm of bfloat16 maps through float32, which takes half the time on a CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B C h w"],
        weight: Float[Tensor, " C"],
        bias: Float[Tensor, " C"],
        num_groups: int,
        eps: float,
    ) -> Float[Tensor, "B C h w"]:
        normal, mean, inverse = _normalized(x, weight, bias, num_groups, eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.num_groups = num_groups
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B C h w"]) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        # torch 2.10's kernel returns wrong gradients where the incoming one has another layout than the input.
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        maps = (one.float().contiguous(memory_format=layout) for one in (gradient, x))
        given = *maps, mean.float(), inverse.float(), weight
        batch_size, channels, height, width = x.shape
        sizes = (batch_size, channels, height * width, ctx.num_groups)
        backward = torch.ops.aten.native_group_norm_backward
        grad_x, grad_weight, grad_bias = backward(*given, *sizes, list(ctx.needs_input_grad[:3]))
        return None if grad_x is None else grad_x.to(x.dtype), grad_weight, grad_bias, None, None
