"""Batch norms with fixed statistics, folded into the convolutions before them, which saves a pass over the maps.

The weight and bias of a norm still learn, through the folded weight and bias. If all are frozen, they are folded only
once (frozen_convolution.py). Names of weights stay the same, and a norm in train mode is computed as usual.
"""

from functools import partial
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch import Tensor, nn

from ovd import kernels
from ovd.clip.frozen_convolution import FrozenWeights, Weights
from ovd.precision import product_dtype


class FoldedConv2d(nn.Conv2d):
    """A convolution that also applies the batch norm after it, if that is in eval mode, and then a ReLU if `relu`."""

    following: tuple["FoldedNorm"]
    """The norm, in a tuple so that it is not registered as a submodule."""
    relu: bool
    frozen: FrozenWeights

    def forward(
        self, x: Float[Tensor, "B C h w"], shortcut: Float[Tensor, "B K H W"] | None = None
    ) -> Float[Tensor, "B K H W"]:
        """Apply the convolution and, in the norm's eval mode, the norm and then a ReLU if `relu`.

        Args:
            shortcut: map that is added before the ReLU, in the norm's eval mode only.
        """
        (norm,) = self.following
        if norm.training:
            return super().forward(x)
        if kernels.supports_map(x):
            return self._with_kernels(x, norm, shortcut)
        weights = self.frozen.get_or_compute((self.weight, *norm.tensors), partial(self._fold, norm))
        return self.frozen.convolve(self, x, weights, shortcut, relu=self.relu)

    def _fold(self, norm: "FoldedNorm") -> Weights:
        weight, bias, mean, variance = norm.tensors
        scale = weight * torch.rsqrt(variance + norm.eps)
        return self.weight * scale[:, None, None, None], bias - mean * scale

    def _with_kernels(
        self, x: Float[Tensor, "B C h w"], norm: "FoldedNorm", shortcut: Float[Tensor, "B K H W"] | None
    ) -> Float[Tensor, "B K H W"]:
        from ovd.kernels.bias_relu import BiasRelu
        from ovd.kernels.fold import FoldNorm

        fixed = (norm.running_mean, norm.running_var, norm.eps, product_dtype(x))
        weight, bias = FoldNorm.apply(self.weight, norm.weight, norm.bias, *fixed)
        out = self._conv_forward(x, weight, None).contiguous(memory_format=torch.channels_last)
        return BiasRelu.apply(out, bias, shortcut, self.relu)


class FoldedNorm(nn.BatchNorm2d):
    """A batch norm that is the identity in eval mode, where the `FoldedConv2d` before it applies the norm."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, bias, running mean and running variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.weight, self.bias, self.running_mean, self.running_var

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return super().forward(x) if self.training else x


class FoldedBottleneck(Bottleneck):
    """A block of CLIP's ResNets whose convolutions apply everything except the pooling."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        if self.bn1.training:
            return super().forward(x)
        out = self.avgpool(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(out, shortcut))


def fold_norms(trunk: nn.Module) -> None:
    """Fold each batch norm of a trunk into the convolution directly before it, in place.

    Such pairs are neighbors in an `nn.Sequential`, and `conv1` and `bn1` to `conv3` and `bn3` in CLIP's ResNets, where
    the ReLU is folded, too.
    """
    for parent in list(trunk.modules()):
        if isinstance(parent, nn.Sequential):
            for convolution, norm in pairwise(parent.children()):
                is_pair = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d
                if is_pair and convolution.bias is None:
                    _fold(convolution, norm, relu=False)
        elif type(parent) in (ModifiedResNet, Bottleneck):
            for number in (1, 2, 3):
                _fold(getattr(parent, f"conv{number}"), getattr(parent, f"bn{number}"), relu=True)
            if type(parent) is Bottleneck:
                parent.__class__ = FoldedBottleneck


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, *, relu: bool) -> None:
    # A new class, not a new module: hooks, weights and references to the modules stay valid.
    assert convolution.bias is None
    norm.__class__ = FoldedNorm
    convolution.__class__ = FoldedConv2d
    folded = cast(FoldedConv2d, convolution)
    folded.following, folded.relu, folded.frozen = (cast(FoldedNorm, norm),), relu, FrozenWeights()
