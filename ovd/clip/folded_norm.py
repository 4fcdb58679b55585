"""Batch norms with fixed statistics, folded into the convolutions before them: no pass of their own over the maps.

The weight and bias of a norm go on learning, through the convolution's. What is frozen is folded once, until it is
changed. Names of weights stay, and a norm in train mode is computed as ever.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

from ovd import kernels


@dataclass(frozen=True)
class _Kept:
    """A folded weight and bias, and what they were computed from."""

    sources: tuple[Tensor, ...]
    states: list[tuple[int, int]]
    weight: Float[Tensor, "K ..."]
    bias: Float[Tensor, " K"]

    def is_of(self, sources: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        """Whether they are what these tensors give now."""
        same = all(mine is other for mine, other in zip(self.sources, sources, strict=True))
        return same and self.weight.dtype == dtype and self.states == _states(sources)


def _states(tensors: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    """What changes when a tensor is moved, or written to in place."""
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]


class FoldedConv2d(nn.Conv2d):
    """A convolution that in the norm's eval mode applies the batch norm behind it, too, and the ReLU behind that."""

    following: tuple["FoldedNorm"]
    """The norm, in a tuple, so that it is not a part of the convolution."""
    relu: bool
    kept: "_Kept | None"

    def forward(
        self, x: Float[Tensor, "B C h w"], shortcut: Float[Tensor, "B K H W"] | None = None
    ) -> Float[Tensor, "B K H W"]:
        """
        Args:
            shortcut: added before the ReLU, in eval mode.
        """
        (norm,) = self.following
        if norm.training:
            return super().forward(x)
        if kernels.applies_to_map(x):
            return self._with_kernels(x, norm, shortcut)
        out = self._conv_forward(x, *self._folded(norm))
        out = out if shortcut is None else out + shortcut
        return F.relu(out, inplace=True) if self.relu else out

    def _folded(self, norm: "FoldedNorm") -> tuple[Float[Tensor, "K ..."], Float[Tensor, " K"]]:
        """Weight and bias with the norm; kept, and in autocast's dtype, if all that they are from is frozen."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        sources = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        # What learns is not kept, even without gradients: fused optimizers change it without a sign.
        learns = any(source.requires_grad for source in sources)
        if learns or self.weight.is_meta or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._fold(norm)
        device = self.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        if self.kept is None or not self.kept.is_of(sources, dtype):
            with torch.no_grad():
                weight, bias = self._fold(norm)
            self.kept = _Kept(sources, _states(sources), weight.to(dtype), bias.to(dtype))
        return self.kept.weight, self.kept.bias

    def _fold(self, norm: "FoldedNorm") -> tuple[Float[Tensor, "K ..."], Float[Tensor, " K"]]:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def __getstate__(self) -> dict[str, object]:
        """Without what is kept, for copies."""
        return {**super().__getstate__(), "kept": None}

    def _with_kernels(
        self, x: Float[Tensor, "B C h w"], norm: "FoldedNorm", shortcut: Float[Tensor, "B K H W"] | None
    ) -> Float[Tensor, "B K H W"]:
        from ovd.kernels.bias_relu import BiasRelu
        from ovd.kernels.fold import Fold

        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        fixed = (norm.running_mean, norm.running_var, norm.eps, dtype)
        weight, bias = Fold.apply(self.weight, norm.weight, norm.bias, *fixed)
        out = self._conv_forward(x, weight, None).contiguous(memory_format=torch.channels_last)
        return BiasRelu.apply(out, bias, shortcut, self.relu)


class FoldedNorm(nn.BatchNorm2d):
    """A batch norm that in eval mode is left to the `FoldedConv2d` before it."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return super().forward(x) if self.training else x


class FoldedBottleneck(Bottleneck):
    """A block of CLIP's ResNets whose convolutions apply all else but the pooling."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        if self.bn1.training:
            return super().forward(x)
        out = self.avgpool(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(out, shortcut))


def fold_norms(trunk: nn.Module) -> None:
    """Fold all batch norms of a trunk into the convolutions that each directly follows, in place.

    These are neighbors in an `nn.Sequential`, and those of the same number in CLIP's ResNets, where a ReLU is folded,
    too.
    """
    for parent in list(trunk.modules()):
        if isinstance(parent, nn.Sequential):
            for convolution, norm in pairwise(parent.children()):
                if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                    _fold(convolution, norm, relu=False)
        elif type(parent) in (ModifiedResNet, Bottleneck):
            for number in (1, 2, 3):
                _fold(getattr(parent, f"conv{number}"), getattr(parent, f"bn{number}"), relu=True)
            if type(parent) is Bottleneck:
                parent.__class__ = FoldedBottleneck


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, *, relu: bool) -> None:
    # Modules keep their identity, their hooks and their weights; only what they compute changes.
    assert convolution.bias is None
    norm.__class__ = FoldedNorm
    convolution.__class__ = FoldedConv2d
    folded = cast(FoldedConv2d, convolution)
    folded.following, folded.relu, folded.kept = (cast(FoldedNorm, norm),), relu, None
