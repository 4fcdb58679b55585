"""A small network beside a frozen backbone, which gives an expert's pyramid what the backbone's features have lost.

A backbone that was trained where color means nothing has no color in its features, so no pyramid can recover it. The
branch computes features from the image itself and adds them to the backbone's; its outputs start at zero. The idea is
that of side-tuning (arXiv:1912.13503); the form is a choice of this toolkit.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ovd.model.convolution import Conv2d
from ovd.model.gates import zero_init_projection
from ovd.model.group_norm import GroupNorm

FIRST_STRIDE = 8
"""Stride of the first convolution. With a finer stride, and with kernels that overlap, the branch takes longer, and
experts learned no more (docs/log.md)."""
WIDTH = 128
NORM_GROUPS = 8


class SideBranch(nn.Module):
    """Convolutions from the image down to the backbone's strides, which are powers of 2; kernels do not overlap."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        """
        Args:
            channels, strides: channels and strides of the backbone's features, finest first.

        Raises:
            ValueError: a stride is not a power of 2, or is less than 8.
        """
        if any(stride & (stride - 1) or stride < FIRST_STRIDE for stride in strides):
            listed = ", ".join(map(str, strides))
            raise ValueError(
                f"expert.side needs strides that are powers of 2, at least {FIRST_STRIDE}, not {listed}; set "
                "expert.side=false"
            )
        super().__init__()
        self.steps, self.outputs = nn.ModuleDict(), nn.ModuleDict()
        stride = FIRST_STRIDE
        self.steps[str(stride)] = _step(Conv2d(3, WIDTH, FIRST_STRIDE, stride=FIRST_STRIDE, bias=False))
        while stride < max(strides):
            stride *= 2
            self.steps[str(stride)] = _step(Conv2d(WIDTH, WIDTH, 2, stride=2, bias=False))
        for number, own in zip(channels, strides, strict=True):
            self.outputs[str(own)] = zero_init_projection(WIDTH, number)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], features: Sequence[Float[Tensor, "B ..."]]
    ) -> tuple[Float[Tensor, "B ..."], ...]:
        """Return the backbone's features, finest first, plus those of the branch.

        Args:
            images: images normalized as the backbone expects them.
            features: the backbone's features.
        """
        of_strides: dict[str, Tensor] = {}
        x = images
        for stride, step in self.steps.items():
            of_strides[stride] = x = step(x)
        outputs = zip(self.outputs.items(), features, strict=True)
        return tuple(output(of_strides[stride], feature) for (stride, output), feature in outputs)


def _step(convolution: Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, GroupNorm(convolution.out_channels, num_groups=NORM_GROUPS, relu=True))
