"""CLIP's image side as a backbone with multi-scale features and a text-aligned feature at every location.

The families are in backbone_convolution.py and backbone_transformer.py; `backbone_families.backbone_from_visual`
chooses by the type of the model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from timm.layers import DropPath
from timm.models import group_parameters
from torch import Tensor, nn


@dataclass(frozen=True)
class BackboneOutput:
    """The feature maps of a batch of images."""

    features: tuple[Float[Tensor, "B ..."], ...]
    """Maps of shape B x C_i x h_i x w_i, finest first: the input of the pyramid."""
    last: Float[Tensor, "B C h w"]
    """Last map, with the last stride: the input of CLIP's own pooling and projection."""


class Backbone(nn.Module, ABC):
    """CLIP's image side in two parts: the trunk up to the last map, and the pooling and projection of that map.

    The dense feature is the result of CLIP's own pooling and projection at each location, computed as if the map had no
    other location. So if all tokens of the last map, including a class token, are equal, and the pooling has no
    positions, the dense feature is the pooled embedding at each location. If CLIP pools by the mean and projects
    linearly, the mean of the dense feature is the pooled embedding of any image. Without windows, `encode` equals
    CLIP's `encode_image` at CLIP's native size.

    Batch norms keep their statistics and dropout is off in training too, so that training starts from exactly CLIP's
    features; only stochastic depth is on in training, if `set_drop_path` was called.
    """

    channels: tuple[int, ...]
    """Channels of the features, finest first."""
    strides: tuple[int, ...]
    """Strides of the features, finest first. The dense feature has the last one."""
    size_divisor: int
    """Number that image sides must be multiples of."""

    recomputes = False
    """Whether activations are recomputed in the backward pass."""

    drops_paths = False
    """Whether stochastic depth is currently on; with a rate of 0 it has no effect."""

    def train(self, mode: bool = True) -> "Backbone":
        super().train(False)
        self.drops_paths = mode
        for module in self.modules():
            if isinstance(module, DropPath):
                module.training = mode
        return self

    @abstractmethod
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> BackboneOutput:
        """Compute the feature maps of images, normalized as CLIP expects."""

    def dense(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Compute the dense feature: CLIP's pooling and projection per location, in the text space."""
        return self.project_locations(self(images).last)

    @abstractmethod
    def project_locations(self, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """Apply CLIP's pooling and projection at every location of `BackboneOutput.last`."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Compute CLIP's pooled embedding of images of any size, not normalized."""

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """Return the trunk's parameters by layer, from input to output, without the projection.

        Freezing and layer-wise learning rates use them.
        """

    @abstractmethod
    def projection_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the dense feature depends on, not the features."""

    def unused_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only `encode` depends on, neither the features nor the dense feature."""
        return []

    def resampled_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are resampled to the size of the images.

        On a GPU torch sums their gradient in another order each time, and raises an error if it has to be deterministic
        (`train.deterministic`).
        """
        return []

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, which takes less memory and more time.

        Raises:
            ValueError: the family does not support it.
        """
        self.recomputes = True

    @abstractmethod
    def set_drop_path(self, rate: float) -> None:
        """Set stochastic depth in training (arXiv:1603.09382), from 0 at the first block to `rate` at the last.

        Raises:
            ValueError: the family does not support it.
        """


def disable_drop_paths(trunk: nn.Module) -> None:
    """Turn off stochastic depth from a model's own config, since only `set_drop_path` sets a rate."""
    for module in trunk.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def timm_layers(trunk: nn.Module, *, without: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters of a timm model by layer, in timm's own grouping for layer-wise learning rates.

    Args:
        without: parameters that are left out.
    """
    named, left_out = dict(trunk.named_parameters()), set(map(id, without))
    by_layer = group_parameters(trunk, trunk.group_matcher(coarse=False))  # type: ignore[operator]
    layers = [
        [named[name] for name in by_layer[layer] if id(named[name]) not in left_out] for layer in sorted(by_layer)
    ]
    return [layer for layer in layers if layer]
