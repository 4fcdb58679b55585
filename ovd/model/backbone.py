"""The backbone: CLIP's own, giving multi-scale features and a text-aligned feature at every location.

The families are in backbone_convolution.py and backbone_transformer.py; `backbone_families.backbone_of` picks by the
model's type.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from timm.layers import DropPath
from timm.models import group_parameters
from torch import Tensor, nn


@dataclass(frozen=True)
class BackboneOutput:
    features: tuple[Float[Tensor, "B ..."], ...]
    """B x C_i x h_i x w_i, finest first: what the learned path sees."""
    last: Float[Tensor, "B C h w"]
    """What CLIP's own pooling and projection start from, of the last map's stride."""


class Backbone(nn.Module, ABC):
    """CLIP's image side, cut in two: what makes the last map, and what pools and projects it.

    Three things hold of every family. The dense feature is what CLIP's own path makes of one location, as if there were
    no other; where all locations of the last map are the same, each gives the pooled embedding; and the whole map
    pooled is `encode_image` on CLIP's native size. Where CLIP takes the mean and projects linearly, the mean of the
    dense feature is the pooled embedding for any image too.

    Batch norms keep their statistics and no dropout acts, in training too, so that it starts from exactly the features
    CLIP has; only stochastic depth, where a config asks for it, is on in training.
    """

    channels: tuple[int, ...]
    """Of the features, finest first."""
    strides: tuple[int, ...]
    """Of the features, finest first. The dense feature has the last one's."""
    size_divisor: int
    """Image sides must be multiples of it."""

    drops_paths = False
    """Whether stochastic depth acts at present; with a rate of 0 it does nothing."""

    def train(self, mode: bool = True) -> "Backbone":
        super().train(False)
        self.drops_paths = mode
        for module in self.modules():
            if isinstance(module, DropPath):
                module.training = mode
        return self

    @abstractmethod
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> BackboneOutput:
        """Images normalised as CLIP expects."""

    def dense(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """S5: CLIP's pooling and projection per location; in the text space."""
        return self.project_locations(self(images).last)

    @abstractmethod
    def project_locations(self, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """CLIP's pooling and projection at every location of `BackboneOutput.last`."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """CLIP's pooled embedding of images of any size, not normalised."""

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """Trunk parameters from input to output, for freezing and layer-wise learning rates; without the projection."""

    @abstractmethod
    def projection_parameters(self) -> list[nn.Parameter]:
        """Those that the dense feature alone depends on, and the features do not."""

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """Trade computation for memory: recompute activations in the backward pass.

        Raises:
            ValueError: the family does not support it.
        """

    @abstractmethod
    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth in training (arXiv:1603.09382), from 0 at the first block to `rate` at the last.

        Raises:
            ValueError: the family does not support it.
        """


def timm_layers(trunk: nn.Module, *, without: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters of a timm model by layer, as timm itself groups them for layer-wise learning rates."""
    named, left_out = dict(trunk.named_parameters()), set(map(id, without))
    by_layer = group_parameters(trunk, trunk.group_matcher(coarse=False))  # type: ignore[operator]
    layers = [
        [named[name] for name in by_layer[layer] if id(named[name]) not in left_out] for layer in sorted(by_layer)
    ]
    return [layer for layer in layers if layer]
