"""Convolutions and linear layers with frozen weights: tensors that depend on the weights alone are computed once.

On a CPU this includes the layout of a convolution's weight (onednn.py). The sum with another map and a ReLU are then
computed within the convolution, not in passes of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.clip import narrow_maps
from ovd.clip.onednn import WeightLayouts, has_prepacked_ops
from ovd.clip.tensor_snapshot import TensorSnapshot, is_cacheable
from ovd.precision import product_dtype

Weights = tuple[Float[Tensor, "K ..."], Float[Tensor, " K"] | None]
"""A weight and a bias; None without a bias."""


@dataclass(frozen=True)
class _CachedWeights:
    """A weight and a bias in one dtype, with the tensors that they were computed from."""

    sources: TensorSnapshot
    weight: Float[Tensor, "K ..."]
    bias: Float[Tensor, " K"] | None

    def is_valid_for(self, sources: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        """Whether these tensors, as they are now, still give this weight and bias in this dtype."""
        return self.weight.dtype == dtype and self.sources.matches(sources)


class FrozenWeights:
    """Cache of the weight and bias that a layer computes with, used while all tensors they come from are frozen."""

    def __init__(self, num_shapes: int = 1):
        """
        Args:
            num_shapes: number of input shapes that take turns; a layout of the weight is kept for each.
        """
        self.num_shapes = num_shapes
        self.cached: _CachedWeights | None = None
        self._layouts = WeightLayouts(num_shapes)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """Copy and pickle without the cache."""
        return type(self), (self.num_shapes,)

    def get_or_compute(self, sources: tuple[Tensor, ...], compute: Callable[[], Weights]) -> Weights:
        """Return `compute()`; the result is cached, in autocast's dtype, if all `sources` are frozen."""
        if sources[0].is_meta or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return compute()
        if not is_cacheable(sources):
            self.cached = None
            return compute()
        cached, dtype = self.cached, product_dtype(sources[0])
        if cached is None or not cached.is_valid_for(sources, dtype):
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = compute()
                weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            self.cached = cached = _CachedWeights(TensorSnapshot.take(sources), weight, bias)
            self._layouts = WeightLayouts(self.num_shapes)
        return cached.weight, cached.bias

    def project(self, layer: nn.Linear, rows: Float[Tensor, "*N C"]) -> Float[Tensor, "*N K"]:
        """Apply a linear layer.

        The rows are flattened first: otherwise torch 2.10 gives other bits when the weight requires no gradient.
        """
        weight, bias = layer.weight, layer.bias
        weights = self.get_or_compute((weight,) if bias is None else (weight, bias), lambda: (weight, bias))
        return F.linear(rows.flatten(0, -2), *weights).unflatten(0, rows.shape[:-1])

    def convolve(
        self,
        convolution: nn.Conv2d,
        x: Float[Tensor, "B C h w"],
        weights: Weights,
        added: Float[Tensor, "B K H W"] | None = None,
        *,
        relu: bool = False,
    ) -> Float[Tensor, "B K H W"]:
        """Convolve with weights from `get_or_compute`, then add `added`, if given, and apply a ReLU if `relu`.

        Args:
            convolution: module with the stride, padding, dilation and groups.
        """
        weight, bias = weights
        if not (self._is_cached(weight) and _can_pack(convolution, x, weight, added)):
            out = narrow_maps.convolve(convolution, x, weight, bias)
            out = out if added is None else added + out  # in the layout of `added`
            return F.relu(out, inplace=True) if relu else out
        x, onednn = x.to(weight.dtype), torch.ops.mkldnn
        shape = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        packed = self._layouts.weight_for(
            x.shape, weight, lambda: onednn._reorder_convolution_weight(weight, *shape, x.shape)
        )
        if added is None:
            return onednn._convolution_pointwise(x, packed, bias, *shape, "relu" if relu else "none", [], None)
        added, unary = added.to(x.dtype), "relu" if relu else None
        return onednn._convolution_pointwise.binary(x, added, packed, bias, *shape, "add", 1.0, unary, [], None)

    def _is_cached(self, weight: Float[Tensor, "K ..."]) -> bool:
        return self.cached is not None and weight is self.cached.weight


def _can_pack(
    convolution: nn.Conv2d,
    x: Float[Tensor, "B C h w"],
    weight: Float[Tensor, "K ..."],
    added: Float[Tensor, "B K H W"] | None,
) -> bool:
    """Whether oneDNN's operations for prepacked weights can compute this convolution."""
    is_plain = (
        convolution.groups == 1 and convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    )
    learns = torch.is_grad_enabled() and (x.requires_grad or (added is not None and added.requires_grad))
    adds_cell = added is not None and added.shape[2:].numel() == 1  # refused by oneDNN in torch 2.10
    return (
        x.device.type == "cpu"
        and has_prepacked_ops(weight.dtype)
        and is_plain
        and not adds_cell
        and not narrow_maps.is_narrow(convolution, x)
        and not learns
        and not torch.jit.is_tracing()  # an export has no such operations
        and x.numel() > 0
        and x.shape[2:].numel() > 1  # for one cell, prepacking a weight with channels first changes bits
        and x.is_contiguous(memory_format=torch.channels_last)
    )
