"""Gated shortcuts: the text-aligned feature passes unchanged, and a gated learned path is added to it.

The idea is the second of the "three ways" (arXiv:2303.13518). The form of the gate, the initial values, the unit norm
of the shortcut and the filter over it are choices of this toolkit.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ovd import kernels
from ovd.choices import Place

EPSILON = 1e-12
"""Shortcuts shorter than this are not scaled to unit length."""

_Slices = tuple[slice, slice, slice]


def silent_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution whose initial output is zero."""
    projection = nn.Conv2d(in_channels, out_channels, 1)
    assert projection.bias is not None
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def unit_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution whose output has about unit length for group-normalized input."""
    projection = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(projection.weight, std=(in_channels * out_channels) ** -0.5)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    return projection


class GatedProjection(nn.Module):
    """gate * projection(x) into the text space, 1 x 1; initially zero, since the projection starts at zero.

    The gate, one trainable factor for all channels or one per channel, starts at 1. With a gate at zero and a random
    projection instead, the learned path starts late, since the projection gets no gradient before the gate has opened.
    """

    def __init__(self, in_channels: int, text_dim: int, *, per_channel: bool):
        super().__init__()
        self.projection = silent_projection(in_channels, text_dim)
        self.gate = nn.Parameter(torch.ones(text_dim if per_channel else 1))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        weight, bias = self.projection.weight, self.projection.bias
        assert bias is not None
        return F.conv2d(x, weight * self.gate[:, None, None, None], bias * self.gate)


class ShortcutFilter(nn.Module):
    """Adds to the shortcut at each point a weighted sum of the shortcuts around it; the weights are initially zero.

    The weights are computed from the learned path's features at the point, and are the same for all channels. With any
    weights the result is therefore a combination of text-aligned features: the positions are learned on the base
    classes, the content stays CLIP's for all classes. Because of average pooling in CLIP, each location contains traces
    of the objects around it, which this filter removes.
    """

    def __init__(self, in_channels: int, size: int):
        """
        Args:
            in_channels: channels of the learned path's features.
            size: side of the square of points that are summed; odd.
        """
        super().__init__()
        self.size = size
        self.weights = silent_projection(in_channels, size * size)

    def forward(
        self, shortcut: Float[Tensor, "B D h w"], features: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B D h w"]:
        weights = self.weights(features).float()
        if kernels.applies_to(shortcut):
            from ovd.kernels.neighbors import WeightedNeighbors

            filtered = WeightedNeighbors.apply(shortcut.permute(0, 2, 3, 1), weights.permute(0, 2, 3, 1), self.size)
            return filtered.permute(0, 3, 1, 2)
        return _WeightedNeighbors.apply(shortcut, weights, self.size)


class _WeightedNeighbors(torch.autograd.Function):
    """shortcut + sum over offsets i of weights_i * (shortcut moved by i), zeros beyond the border.

    The gradient is written out, since autograd would keep a copy of the shortcut for every offset, which takes a fifth
    of a training step.
    """

    @staticmethod
    def forward(
        ctx: Any, shortcut: Float[Tensor, "B D h w"], weights: Float[Tensor, "B K h w"], size: int
    ) -> Float[Tensor, "B D h w"]:
        ctx.save_for_backward(shortcut, weights)
        ctx.size = size
        last = shortcut.permute(0, 2, 3, 1)  # channels last, which is the layout in bf16 already
        filtered = last.clone(memory_format=torch.contiguous_format)
        for index, (here, there) in enumerate(_shifts(shortcut.shape[2], shortcut.shape[3], size)):
            filtered[here].addcmul_(weights[:, index, :, :, None][here], last[there])
        return filtered.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, None]:
        shortcut, weights = ctx.saved_tensors
        last, slope = shortcut.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        of_shortcut = slope.clone(memory_format=torch.contiguous_format)
        of_weights = torch.zeros_like(weights)
        for index, (here, there) in enumerate(_shifts(shortcut.shape[2], shortcut.shape[3], ctx.size)):
            of_shortcut[there].addcmul_(weights[:, index, :, :, None][here], slope[here])
            of_weights[:, index][here] = (slope[here] * last[there]).sum(dim=-1)
        return of_shortcut.permute(0, 3, 1, 2), of_weights, None


def _shifts(height: int, width: int, size: int) -> Iterator[tuple[_Slices, _Slices]]:
    """Yield, for every offset in a square of side `size`, the points with a neighbor at it, and those neighbors."""

    def along(length: int, offset: int) -> tuple[slice, slice]:
        low, high = max(0, -offset), max(0, length - max(0, offset))
        return slice(low, max(low, high)), slice(low + offset, max(low, high) + offset)

    for dy in range(-(size // 2), size // 2 + 1):
        for dx in range(-(size // 2), size // 2 + 1):
            (y, y_there), (x, x_there) = along(height, dy), along(width, dx)
            yield (slice(None), y, x), (slice(None), y_there, x_there)


def resample_dense(
    dense: Float[Tensor, "B D h w"], dense_stride: int, size: tuple[int, int], stride: int
) -> Float[Tensor, "B D H W"]:
    """S_l: the dense CLIP feature, resampled to a pyramid level and then normalized to unit length at every location.

    Upsampling is bilinear; downsampling is the mean over the cells that a coarser cell covers. No parameters.
    """
    if stride < dense_stride:
        dense = _upsample(dense, size)
    elif stride > dense_stride:
        dense = F.avg_pool2d(dense, stride // dense_stride, ceil_mode=True, count_include_pad=False)
    if kernels.applies_to(dense):
        from ovd.kernels.rows import UnitRows

        return UnitRows.apply(dense.permute(0, 2, 3, 1), EPSILON).permute(0, 3, 1, 2)
    return F.normalize(dense.float(), dim=1, eps=EPSILON)


def _upsample(dense: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B D H W"]:
    """Bilinear interpolation (align_corners=False) as two matrix products, down and across.

    On a GPU the gradient of torch's own has another sum in every run, and takes longer.
    """
    batch, channels, height, width = dense.shape
    down, across = (_interpolation(old, new, dense) for old, new in zip((height, width), size, strict=True))
    rows = down @ dense.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = rows.view(batch * size[0], width, channels)
    return torch.bmm(across.expand(len(rows), -1, -1), rows).view(batch, *size, channels).permute(0, 3, 1, 2)


def _interpolation(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """The weights of old positions along a line at new ones."""
    at = ((torch.arange(new, device=like.device) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    distance = (at[:, None] - torch.arange(old, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


class PyramidShortcut(nn.Module):
    """A_l = S_l + g_l * U_l(P_l) for every level l."""

    def __init__(self, num_levels: int, channels: int, text_dim: int, *, per_channel: bool):
        super().__init__()
        self.learned = nn.ModuleList(
            GatedProjection(channels, text_dim, per_channel=per_channel) for _ in range(num_levels)
        )

    def forward(
        self, shortcuts: list[Float[Tensor, "B D ..."]], pyramid: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        levels = zip(shortcuts, pyramid, self.learned, strict=True)
        return [shortcut + learned(level) for shortcut, level, learned in levels]


class HeadShortcut(nn.Module):
    """e_l = filter(A_l) + h * W(class tower(P_l)), with filter, h and W shared by all levels, as the head is."""

    def __init__(self, channels: int, text_dim: int, *, per_channel: bool, filter_size: int):
        super().__init__()
        self.filter = ShortcutFilter(channels, filter_size)
        self.learned = GatedProjection(channels, text_dim, per_channel=per_channel)

    def forward(
        self, aligned: list[Float[Tensor, "B D ..."]], class_features: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        levels = zip(aligned, class_features, strict=True)
        return [self.filter(level, features) + self.learned(features) for level, features in levels]


class GatedShortcuts(nn.Module):
    """Class embeddings that are initially exactly the dense feature, and to which the learned path adds.

    With both places, e_l = filter(S_l + g_l * U_l(P_l)) + h * W(class tower(P_l)) at every level l.
    """

    uses_dense = True
    """Whether `forward` needs the dense feature."""

    def __init__(
        self,
        num_levels: int,
        channels: int,
        text_dim: int,
        *,
        places: Collection[Place],
        per_channel: bool,
        filter_size: int,
    ):
        """
        Args:
            num_levels: levels of the pyramid.
            channels: width of pyramid and head.
            text_dim: D, dimensions of the text space.
            places: where the learned path is added to the dense feature, at least one.
            per_channel: whether there is one gate per channel of the text space, or one for all.
            filter_size: side of the square of points that the head's shortcut filter covers; odd.
        """
        super().__init__()
        assert places, "gated shortcuts need a place"
        self.pyramid, self.head = None, None
        if "pyramid" in places:
            self.pyramid = PyramidShortcut(num_levels, channels, text_dim, per_channel=per_channel)
        if "head" in places:
            self.head = HeadShortcut(channels, text_dim, per_channel=per_channel, filter_size=filter_size)

    @property
    def uses_class_features(self) -> bool:
        """Whether `forward` needs the head's class features."""
        return self.head is not None

    def forward(
        self,
        dense: list[Float[Tensor, "B D ..."]],
        pyramid: list[Float[Tensor, "B C ..."]],
        class_features: list[Float[Tensor, "B C ..."]],
    ) -> list[Float[Tensor, "B D ..."]]:
        """The class embeddings of every level.

        Args:
            dense: S_l, from `resample_dense`.
        """
        embeddings = dense if self.pyramid is None else self.pyramid(dense, pyramid)
        return embeddings if self.head is None else self.head(embeddings, class_features)


class PlainProjection(nn.Module):
    """Class embeddings of an ordinary detector, without shortcuts: a projection of the head's class features."""

    uses_dense = False
    uses_class_features = True

    def __init__(self, channels: int, text_dim: int):
        super().__init__()
        self.projection = unit_projection(channels, text_dim)

    def forward(
        self,
        dense: list[Float[Tensor, "B D ..."]],
        pyramid: list[Float[Tensor, "B C ..."]],
        class_features: list[Float[Tensor, "B C ..."]],
    ) -> list[Float[Tensor, "B D ..."]]:
        """The class embeddings of every level; `dense` and `pyramid` are not used."""
        return [self.projection(features) for features in class_features]
