"""Gated shortcuts: the text-aligned feature passes unchanged, and a gated learned path is added to it.

The idea is the second of the "three ways" (arXiv:2303.13518). The form of the gate, the initial values, the unit norm
of the shortcut and the filter over it are choices of this toolkit.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.choices import Place
from ovd.clip.frozen_convolution import Weights
from ovd.model.convolution import Conv2d
from ovd.model.neighbors import add_weighted_neighbors


def zero_init_projection(in_channels: int, out_channels: int) -> Conv2d:
    """Create a 1 x 1 convolution whose initial output is zero."""
    projection = Conv2d(in_channels, out_channels, 1)
    assert projection.bias is not None
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def unit_projection(in_channels: int, out_channels: int) -> Conv2d:
    """Create a 1 x 1 convolution whose output has about unit length for group-normalized input."""
    projection = Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(projection.weight, std=(in_channels * out_channels) ** -0.5)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    return projection


class GatedProjection(nn.Module):
    """Gated 1 x 1 projection into the text space, gate * projection(x), whose output is initially zero.

    The projection starts at zero. The gate, one trainable factor for all channels or one per channel, starts at 1. With
    a gate at zero and a random projection instead, the learned path starts late, since the projection gets no gradient
    before the gate has opened.
    """

    def __init__(self, in_channels: int, text_dim: int, *, per_channel: bool):
        super().__init__()
        self.projection = zero_init_projection(in_channels, text_dim)
        self.gate = nn.Parameter(torch.ones(text_dim if per_channel else 1))

    def forward(
        self, x: Float[Tensor, "B C h w"], added: Float[Tensor, "B D h w"] | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Compute gate * projection(x), plus the map `added` if there is one."""
        if torch.compiler.is_compiling():
            projected = F.conv2d(x, *self._gated())
            return projected if added is None else projected + added
        projection = self.projection
        assert projection.bias is not None
        return projection.with_weights(x, (projection.weight, projection.bias, self.gate), self._gated, added)

    def _gated(self) -> Weights:
        assert self.projection.bias is not None
        return self.projection.weight * self.gate[:, None, None, None], self.projection.bias * self.gate


class ShortcutFilter(nn.Module):
    """Filter that adds to each point's shortcut a weighted sum of the shortcuts around it.

    The weights are initially zero, computed from the learned path's features at the point, and shared by all channels.
    So the result is always a combination of text-aligned features: the weights are learned on the base classes, while
    the content stays CLIP's for all classes. Because of average pooling in CLIP, each location contains traces of the
    objects around it, which this filter removes.
    """

    def __init__(self, in_channels: int, size: int):
        """
        Args:
            in_channels: channels of the learned path's features.
            size: side of the square of points that are summed; odd.
        """
        super().__init__()
        self.size = size
        self.weights = zero_init_projection(in_channels, size * size)

    def forward(
        self, shortcut: Float[Tensor, "B D h w"], features: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B D h w"]:
        return add_weighted_neighbors(shortcut, self.weights(features).float(), self.size)


class PyramidShortcut(nn.Module):
    """Gated shortcut of the pyramid: A_l = S_l + g_l * U_l(P_l) for every level l.

    S_l is the dense feature resampled to the level, P_l the level's learned features, U_l a projection, g_l its gate.
    """

    def __init__(self, num_levels: int, channels: int, text_dim: int, *, per_channel: bool):
        super().__init__()
        self.learned = nn.ModuleList(
            GatedProjection(channels, text_dim, per_channel=per_channel) for _ in range(num_levels)
        )

    def forward(
        self, shortcuts: list[Float[Tensor, "B D ..."]], pyramid: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        levels = zip(shortcuts, pyramid, self.learned, strict=True)
        return [learned(level, shortcut) for shortcut, level, learned in levels]


class HeadShortcut(nn.Module):
    """Gated shortcut of the head: e_l = filter(A_l) + h * W(class tower(P_l)).

    The filter, the gate h and the projection W are shared by all levels, as the head is.
    """

    def __init__(self, channels: int, text_dim: int, *, per_channel: bool, filter_size: int):
        super().__init__()
        self.filter = ShortcutFilter(channels, filter_size)
        self.learned = GatedProjection(channels, text_dim, per_channel=per_channel)

    def forward(
        self, aligned: list[Float[Tensor, "B D ..."]], class_features: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        levels = zip(aligned, class_features, strict=True)
        return [self.learned(features, self.filter(level, features)) for level, features in levels]


class GatedShortcuts(nn.Module):
    """Gated shortcuts of pyramid and head, whose class embeddings are initially exactly the dense feature.

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
            num_levels: number of levels of the pyramid.
            channels: width of pyramid and head.
            text_dim: D, number of dimensions of the text space.
            places: places at which the learned path is added to the dense feature, at least one.
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
        """Compute the class embeddings of every level.

        Args:
            dense: S_l, the dense feature at every level, from `resample_dense`.
        """
        embeddings = dense if self.pyramid is None else self.pyramid(dense, pyramid)
        return embeddings if self.head is None else self.head(embeddings, class_features)


class PlainProjection(nn.Module):
    """Projection of the head's class features to class embeddings, without shortcuts, as in an ordinary detector."""

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
        """Compute the class embeddings of every level; `dense` and `pyramid` are not used."""
        return [self.projection(features) for features in class_features]
