"""Gated shortcuts: the text-aligned feature passes unchanged, and the learned path is let in beside it.

The idea is the second of the "three ways" (arXiv:2303.13518). The form of the gate, the starting values, the unit norm
of the shortcut and the filter over it are choices of this toolkit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def silent_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that gives zeros until it has learned something."""
    projection = nn.Conv2d(in_channels, out_channels, 1)
    assert projection.bias is not None
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


class GatedProjection(nn.Module):
    """gate * projection(x) into the text space, 1 x 1; nothing at the start, since the projection starts at zero.

    The gate, one trainable factor for all channels or one for each, starts at 1. With it at zero instead, and a random
    projection behind it, the learned path starts late, as the projection learns nothing before the gate has opened.
    """

    def __init__(self, in_channels: int, text_dim: int, *, per_channel: bool):
        super().__init__()
        self.projection = silent_projection(in_channels, text_dim)
        self.gate = nn.Parameter(torch.ones(text_dim if per_channel else 1))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        return self.projection(x) * self.gate[:, None, None]


class ShortcutFilter(nn.Module):
    """Adds to the shortcut at each point a weighted sum of the shortcuts around it; zero weights at the start.

    The weights come from what the learned path sees there, and are the same for all channels, so whatever they are, the
    result is a combination of text-aligned features: where to look is learned on the base classes, what is seen
    there stays CLIP's, for all classes alike. Average pooling in CLIP leaves each location with traces of the
    objects around it, and this is what takes them out.
    """

    def __init__(self, in_channels: int, size: int):
        """
        Args:
            in_channels: of the learned path's features.
            size: side of the square of points looked at; odd.
        """
        super().__init__()
        self.size = size
        self.weights = silent_projection(in_channels, size * size)

    def forward(
        self, shortcut: Float[Tensor, "B D h w"], features: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B D h w"]:
        weights = self.weights(features).float()
        height, width = shortcut.shape[-2:]
        around = F.pad(shortcut, [self.size // 2] * 4)
        filtered = shortcut
        for index in range(self.size**2):
            y, x = divmod(index, self.size)
            filtered = filtered + weights[:, index, None] * around[..., y : y + height, x : x + width]
        return filtered


def resample_dense(
    dense: Float[Tensor, "B D h w"], dense_stride: int, size: tuple[int, int], stride: int
) -> Float[Tensor, "B D H W"]:
    """S_l: the dense CLIP feature resampled to a pyramid level, then unit length at every location.

    Bilinear upwards; downwards the mean over the cells that a coarser cell covers. No parameters.
    """
    if stride < dense_stride:
        dense = F.interpolate(dense, size=size, mode="bilinear", align_corners=False)
    elif stride > dense_stride:
        dense = F.avg_pool2d(dense, stride // dense_stride, ceil_mode=True, count_include_pad=False)
    return F.normalize(dense.float(), dim=1)


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
