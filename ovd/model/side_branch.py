"""A small net beside a frozen backbone, which shows an expert's pyramid what the backbone's features have lost.

A backbone that was trained where color means nothing has no color in its features, whatever a pyramid makes of them.
The branch computes features from the image itself and adds them to the backbone's; its outputs start at zero. The idea
is that of side-tuning (arXiv:1912.13503); the form is a choice of this toolkit.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ovd.model.gates import silent_projection

WIDTHS = (32, 64, 128)
"""Channels at strides 2, 4, and 8 and coarser."""
NORM_GROUPS = 8


class SideBranch(nn.Module):
    """3 x 3 convolutions of stride 2 from the image down to the backbone's strides, which are powers of 2."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        """
        Args:
            channels, strides: of the backbone's features, finest first.

        Raises:
            ValueError: a stride is not a power of 2.
        """
        if any(stride & (stride - 1) for stride in strides):
            strides_text = ", ".join(map(str, strides))
            raise ValueError(
                f"expert.side needs strides that are powers of 2, not {strides_text}; set expert.side=false"
            )
        super().__init__()
        self.steps, self.outputs = nn.ModuleList(), nn.ModuleDict()
        stride, width = 1, 3
        while stride < max(strides):
            stride *= 2
            wider = WIDTHS[min(len(self.steps), len(WIDTHS) - 1)]
            convolution = nn.Conv2d(width, wider, 3, 2, 1, bias=False)
            self.steps.append(nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, wider), nn.ReLU()))
            width = wider
            if stride in strides:
                self.outputs[str(stride)] = silent_projection(width, channels[list(strides).index(stride)])

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[int, Float[Tensor, "B C h w"]]:
        """What is added to the backbone's feature of each stride.

        Args:
            images: normalized as the backbone expects them.
        """
        added, x = {}, images
        for number, step in enumerate(self.steps):
            x = step(x)
            stride = 2 ** (number + 1)
            if str(stride) in self.outputs:
                added[stride] = self.outputs[str(stride)](x)
        return added
