"""The image tower: CLIP's own, giving multi-scale maps and a text-aligned feature at every location."""

from dataclasses import dataclass

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

FINEST_STRIDE = 8


@dataclass(frozen=True)
class TowerOutput:
    maps: tuple[Float[Tensor, "B ..."], ...]
    """B x C_i x h_i x w_i, finest first: what the learned path sees."""
    dense: Float[Tensor, "B D h w"]
    """S5: the last map through CLIP's own pooling and projection, per location; in the text space."""


class TimmTower(nn.Module):
    """An average-pooling timm tower of an open_clip model (the tiny net, ConvNeXt, NFNet, plain ResNets).

    The dense feature treats every location of the last map as a map of its own, 1 x 1, and sends it through the
    modules that pool and project in CLIP. Average pooling commutes with a linear projection, so with no norm between
    the two the mean over locations is exactly the pooled embedding; ConvNeXt has a LayerNorm there, which makes it
    approximate.

    The tower stays in eval mode: batch norms keep their statistics, and nothing is dropped, so that training starts
    from exactly the features CLIP has.
    """

    def __init__(self, visual: TimmModel):
        """
        Args:
            visual: the image side of an open_clip model; its modules are used as they are.

        Raises:
            ValueError: the tower has no feature maps by stage, or pools by attention.
        """
        super().__init__()
        if not isinstance(visual, TimmModel) or not hasattr(visual.trunk, "feature_info"):
            raise ValueError(f"{type(visual).__name__} is not a timm tower with feature maps")
        if "pool" in visual.head._modules:
            raise ValueError("towers that pool by attention are not supported; use one with average pooling")
        self.trunk = visual.trunk
        self.projection = visual.head
        stages = [
            (index, info["num_chs"], info["reduction"])
            for index, info in enumerate(self.trunk.feature_info)
            if info["reduction"] >= FINEST_STRIDE
        ]
        self.stage_indices = [index for index, _, _ in stages]
        self.channels = tuple(channels for _, channels, _ in stages)
        self.strides = tuple(stride for _, _, stride in stages)
        self.eval()

    def train(self, mode: bool = True) -> "TimmTower":
        return super().train(False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> TowerOutput:
        """Images normalised as CLIP expects; sides in multiples of the last stride."""
        last, maps = self.trunk.forward_intermediates(images, indices=self.stage_indices)
        return TowerOutput(tuple(maps), self.project_locations(last))

    def project_locations(self, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """CLIP's pooling and projection at every location of the last map."""
        batch, channels, height, width = last.shape
        locations = last.permute(0, 2, 3, 1).reshape(batch * height * width, channels, 1, 1)
        projected = self.projection(self.trunk.forward_head(locations))
        return projected.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
