"""The convolution of pyramid, head and shortcuts, in the fastest way for its weights and device."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovd import kernels
from ovd.clip import narrow_maps
from ovd.clip.frozen_convolution import FrozenWeights, Weights
from ovd.model.small_maps import convolve_small_maps, is_small
from ovd.precision import product_dtype

INPUT_SHAPES = 5
"""Number of input shapes that take turns at a convolution, one per pyramid level."""


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` of pyramid, head and shortcuts, in the fastest way for its weights and device.

    Values that depend only on frozen weights are computed once. On a GPU a kernel adds the bias, and a map if there is
    one, since torch's own addition takes as long as the convolution. On a CPU small levels are convolved together, and
    narrow maps are widened to avoid an error of oneDNN (clip/narrow_maps.py).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.frozen = FrozenWeights(INPUT_SHAPES)

    def forward(
        self, x: Float[Tensor, "B C h w"], added: Float[Tensor, "B K H W"] | None = None
    ) -> Float[Tensor, "B K H W"]:
        """Compute the convolution, plus the map `added` if there is one."""
        if torch.compiler.is_compiling():
            out = narrow_maps.convolve(self, x, self.weight, self.bias)
            return out if added is None else out + added
        weights = self.weight, self.bias
        return self.with_weights(x, tuple(one for one in weights if one is not None), lambda: weights, added)

    def with_weights(
        self,
        x: Float[Tensor, "B C h w"],
        sources: tuple[Tensor, ...],
        compute: Callable[[], Weights],
        added: Float[Tensor, "B K H W"] | None = None,
    ) -> Float[Tensor, "B K H W"]:
        """Compute the convolution with a weight and a bias computed from other tensors, plus the map `added` if any.

        Args:
            sources: tensors that weight and bias are computed from.
            compute: returns weight and bias.
        """
        weight, bias = self.frozen.get_or_compute(sources, compute)
        if kernels.supports_map(x):
            out = self._conv_forward(x, weight, None)
            assert bias is not None or added is None
            return out if bias is None else add_bias(out, bias, added)
        if added is None or added.dtype == weight.dtype:
            return self.frozen.convolve(self, x, (weight, bias), added)
        # The sum is in float32, for its precision; adding tensors of two dtypes takes torch several times as long.
        return self.frozen.convolve(self, x, (weight, bias)).to(added.dtype).add_(added)

    def forward_levels(self, levels: list[Float[Tensor, "B C ..."]]) -> list[Float[Tensor, "B K ..."]]:
        """Convolve each of a pyramid's levels; needs a bias, and a padding that keeps their sizes."""
        weight, bias = self.weight, self.bias
        assert bias is not None
        learns = torch.is_grad_enabled() and weight.requires_grad
        if not learns or weight.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return [self(level) for level in levels]
        weight, bias = weight.to(product_dtype(weight)), bias.to(product_dtype(weight))
        small = [level.to(weight.dtype) for level in levels if is_small(level)]
        results = iter(convolve_small_maps(small, weight, bias) if small else ())
        return [next(results) if is_small(level) else self._conv_forward(level, weight, bias) for level in levels]


def add_bias(
    x: Float[Tensor, "B K H W"], bias: Float[Tensor, " K"], added: Float[Tensor, "B K H W"] | None = None
) -> Float[Tensor, "B K H W"]:
    """Compute x + bias + added with a kernel; overwrites x."""
    from ovd.kernels.bias_relu import BiasRelu

    return BiasRelu.apply(x.contiguous(memory_format=torch.channels_last), bias, added, False)
