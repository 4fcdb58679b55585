"""A convolution that adds its bias in a kernel of its own on a GPU, where torch's takes as long as the convolution."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd import kernels


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with a bias."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        if kernels.applies_to_map(x):
            assert self.bias is not None
            return add_bias(self._conv_forward(x, self.weight, None), self.bias)
        return super().forward(x)


def project(
    x: Float[Tensor, "B C h w"],
    weight: Float[Tensor, "D C 1 1"],
    bias: Float[Tensor, " D"],
    added: Float[Tensor, "B D h w"] | None,
) -> Float[Tensor, "B D h w"]:
    """A 1 x 1 convolution with bias, plus a map."""
    if kernels.applies_to_map(x):
        return add_bias(F.conv2d(x, weight), bias, added)
    projected = F.conv2d(x, weight, bias)
    return projected if added is None else projected + added


def add_bias(
    x: Float[Tensor, "B K H W"], bias: Float[Tensor, " K"], added: Float[Tensor, "B K H W"] | None = None
) -> Float[Tensor, "B K H W"]:
    """x + bias + added with a kernel; overwrites x."""
    from ovd.kernels.bias_relu import BiasRelu

    return BiasRelu.apply(x.contiguous(memory_format=torch.channels_last), bias, added, False)
