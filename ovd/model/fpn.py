"""Feature pyramid (Lin et al. 2017) on the tower's maps, extended by strided convolutions up to P7."""

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

COARSEST_STRIDE = 128
CHANNELS_PER_GROUP = 8


def group_norm(channels: int) -> nn.GroupNorm:
    """Wu and He 2018: independent of the batch, as batches of detection data are small."""
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class FeaturePyramid(nn.Module):
    """P3..P7 of one width. Levels below the tower's last stride take the tower's maps, the others are strided down."""

    def __init__(self, tower_channels: tuple[int, ...], tower_strides: tuple[int, ...], channels: int):
        """
        Args:
            tower_channels, tower_strides: of the tower's maps, finest first; each stride twice the one before.
            channels: width of the pyramid, a multiple of 32.
        """
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(tower_strides)):
            raise ValueError(
                f"the tower's strides are {tower_strides}; a pyramid needs each to be twice the one before"
            )
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in tower_channels)
        self.outputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), group_norm(channels)) for _ in tower_channels
        )
        self.strides = list(tower_strides)
        self.extras = nn.ModuleList()
        while self.strides[-1] < COARSEST_STRIDE:
            self.extras.append(
                nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1), group_norm(channels))
            )
            self.strides.append(2 * self.strides[-1])

    def forward(self, maps: tuple[Float[Tensor, "B ..."], ...]) -> list[Float[Tensor, "B C ..."]]:
        """One B x channels x h_l x w_l map per stride of `strides`."""
        merged = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=merged[finer].shape[-2:])
        levels = [output(level) for output, level in zip(self.outputs, merged, strict=True)]
        for extra in self.extras:
            levels.append(extra(F.relu(levels[-1])))
        return levels
