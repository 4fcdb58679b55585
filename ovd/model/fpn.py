"""Feature pyramids of five levels, from a backbone's features (Lin et al. 2017) or one map of a plain transformer."""

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.model.convolution import Conv2d
from ovd.model.group_norm import GroupNorm

NUM_LEVELS = 5
"""Number of levels: P3 to P7, strides 8 to 128 if the finest is 8."""


class FeaturePyramid(nn.Module):
    """Feature pyramid of five levels of equal width, one per feature map, the others by strided convolutions."""

    def __init__(self, backbone_channels: tuple[int, ...], backbone_strides: tuple[int, ...], channels: int):
        """
        Args:
            backbone_channels, backbone_strides: channels and strides of the backbone's features, finest first; each
                stride is twice the one before.
            channels: width of the pyramid, a multiple of 32.
        """
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(backbone_strides)):
            raise ValueError(
                f"the backbone's strides are {backbone_strides}; in a pyramid, each must be twice the one before"
            )
        self.laterals = nn.ModuleList(Conv2d(width, channels, 1) for width in backbone_channels)
        self.outputs = nn.ModuleList(
            nn.Sequential(Conv2d(channels, channels, 3, padding=1), GroupNorm(channels)) for _ in backbone_channels
        )
        self.extras = strided_levels(channels, NUM_LEVELS - len(backbone_strides))
        self.strides = [backbone_strides[0] * 2**level for level in range(NUM_LEVELS)]

    def forward(self, features: tuple[Float[Tensor, "B ..."], ...]) -> list[Float[Tensor, "B C ..."]]:
        """Compute one B x channels x h_l x w_l map per stride of `strides`."""
        merged = [lateral(level) for lateral, level in zip(self.laterals, features, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=merged[finer].shape[-2:])
        levels = [output(level) for output, level in zip(self.outputs, merged, strict=True)]
        return append_coarse_levels(levels, self.extras)


class SimplePyramid(nn.Module):
    """Feature pyramid of five levels from the single map of a plain transformer (ViTDet, arXiv:2203.16527).

    The levels have half the map's stride (a transposed convolution), its own stride, twice its stride (max-pooling),
    and the next two (strided convolutions).
    """

    def __init__(self, backbone_channels: int, backbone_stride: int, channels: int):
        """
        Args:
            backbone_channels, backbone_stride: channels and stride of the backbone's only feature map; the stride is
                even.
            channels: width of the pyramid, a multiple of 32.
        """
        super().__init__()
        self.finer = nn.Sequential(
            nn.ConvTranspose2d(backbone_channels, backbone_channels // 2, 2, stride=2),
            GroupNorm(backbone_channels // 2),
            nn.GELU(),
            Conv2d(backbone_channels // 2, channels, 1),
        )
        self.same = Conv2d(backbone_channels, channels, 1)
        self.coarser = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), Conv2d(backbone_channels, channels, 1))
        self.outputs = nn.ModuleList(
            nn.Sequential(GroupNorm(channels), Conv2d(channels, channels, 3, padding=1), GroupNorm(channels))
            for _ in range(3)
        )
        self.extras = strided_levels(channels, NUM_LEVELS - 3)
        self.strides = [backbone_stride * 2**level // 2 for level in range(NUM_LEVELS)]

    def forward(self, features: tuple[Float[Tensor, "B ..."], ...]) -> list[Float[Tensor, "B C ..."]]:
        """Compute one B x channels x h_l x w_l map per stride of `strides`."""
        (only,) = features
        scales = (self.finer(only), self.same(only), self.coarser(only))
        levels = [output(scale) for output, scale in zip(self.outputs, scales, strict=True)]
        return append_coarse_levels(levels, self.extras)


def strided_levels(channels: int, num_levels: int) -> nn.ModuleList:
    """Create strided convolutions, each of which computes a level from the next finer one."""
    return nn.ModuleList(
        nn.Sequential(Conv2d(channels, channels, 3, stride=2, padding=1), GroupNorm(channels))
        for _ in range(num_levels)
    )


def append_coarse_levels(
    levels: list[Float[Tensor, "B C ..."]], extras: nn.ModuleList
) -> list[Float[Tensor, "B C ..."]]:
    """Append the levels that the convolutions of `strided_levels` compute from the last one."""
    for extra in extras:
        levels.append(extra(F.relu(levels[-1])))
    return levels
