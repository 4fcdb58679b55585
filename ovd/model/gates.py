"""Gated shortcuts: the text-aligned feature passes unchanged, and the learned path is let in through a gate.

The idea is the second of the "three ways" (arXiv:2303.13518). The form of the gate, its start at zero and the unit
norm of the shortcut are choices of this toolkit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Gate(nn.Module):
    """Multiplies by a trainable factor that starts at zero, one for all channels or one for each."""

    def __init__(self, num_channels: int, *, per_channel: bool):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(num_channels if per_channel else 1))

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x * self.factor[:, None, None]


def unit_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that gives about unit length from group-normalised input, the length of a shortcut."""
    projection = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(projection.weight, std=(in_channels * out_channels) ** -0.5)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    return projection


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
        self.projections = nn.ModuleList(unit_projection(channels, text_dim) for _ in range(num_levels))
        self.gates = nn.ModuleList(Gate(text_dim, per_channel=per_channel) for _ in range(num_levels))

    def forward(
        self, shortcuts: list[Float[Tensor, "B D ..."]], pyramid: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        levels = zip(shortcuts, pyramid, self.projections, self.gates, strict=True)
        return [shortcut + gate(project(learned)) for shortcut, learned, project, gate in levels]


class HeadShortcut(nn.Module):
    """e_l = A_l + h_l * W(class tower(P_l)) for every level l; W is shared, the gates are not."""

    def __init__(self, num_levels: int, channels: int, text_dim: int, *, per_channel: bool):
        super().__init__()
        self.projection = unit_projection(channels, text_dim)
        self.gates = nn.ModuleList(Gate(text_dim, per_channel=per_channel) for _ in range(num_levels))

    def forward(
        self, aligned: list[Float[Tensor, "B D ..."]], class_features: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        levels = zip(aligned, class_features, self.gates, strict=True)
        return [start + gate(self.projection(learned)) for start, learned, gate in levels]
