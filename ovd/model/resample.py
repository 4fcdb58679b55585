"""The dense CLIP feature at the levels of a pyramid."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ovd import kernels
from ovd.precision import autocast

EPSILON = 1e-12
"""Length below which features are not scaled to unit length."""


def resample_dense(
    dense: Float[Tensor, "B D h w"], dense_stride: int, size: tuple[int, int], stride: int
) -> Float[Tensor, "B D H W"]:
    """Resample the dense CLIP feature to a pyramid level, then normalize it to unit length at every location: S_l.

    Upsampling is bilinear; downsampling is the mean over the cells that a coarser cell covers. There are no parameters.
    In training on a CPU the result is in float32, else in the dtype of the dense feature.
    """
    if stride < dense_stride and torch.jit.is_tracing():  # a single operation in an exported graph
        dense = F.interpolate(dense, size=size, mode="bilinear", align_corners=False)
    elif stride < dense_stride:
        dense = _upsample(dense, size)
    elif stride > dense_stride:
        dense = F.avg_pool2d(dense, stride // dense_stride, ceil_mode=True, count_include_pad=False)
    if kernels.supports(dense):
        from ovd.kernels.rows import NormalizeRows

        return NormalizeRows.apply(dense.permute(0, 2, 3, 1), EPSILON).permute(0, 3, 1, 2)
    with autocast(dense.device, False):
        if torch.is_grad_enabled():
            return _UnitLength.apply(dense)
        return F.normalize(dense, dim=1, eps=EPSILON)


class _UnitLength(torch.autograd.Function):
    """Normalization at every location in float32, with the result and the gradient of `F.normalize`.

    Autograd would pass over the map ten times in the backward pass; this takes six passes to the same numbers.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        features = x.float()
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        unit = features / length.clamp_min(EPSILON)
        ctx.save_for_backward(unit, length)
        ctx.dtype = x.dtype
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        unit, length = ctx.saved_tensors
        divisor = length.clamp_min(EPSILON)
        along = (unit / divisor).mul_(gradient).sum(dim=1, keepdim=True)
        along = torch.where(length >= EPSILON, along, 0)
        return (gradient / divisor).sub_(unit * along).to(ctx.dtype)


def _upsample(dense: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B D H W"]:
    """Interpolate bilinearly (align_corners=False) with two matrix products, down and across.

    On a GPU the gradient of torch's own interpolation is summed in another order in every run, and takes longer.
    """
    batch, channels, height, width = dense.shape
    down, across = (_interpolation(old, new, dense) for old, new in zip((height, width), size, strict=True))
    rows = down @ dense.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = rows.view(batch * size[0], width, channels)
    return torch.bmm(across.expand(len(rows), -1, -1), rows).view(batch, *size, channels).permute(0, 3, 1, 2)


def _interpolation(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """Return the weights of the old positions along a line at each new position."""
    at = ((torch.arange(new, device=like.device) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    distance = (at[:, None] - torch.arange(old, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)
