"""The image tower of a CLIP model, by the type of its image side."""

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from ovd.model.tower import ImageTower
from ovd.model.tower_convolution import ClipResNetTower, TimmConvolutionTower
from ovd.model.tower_transformer import OpenClipTransformerTower, TimmTransformerTower


def image_tower(visual: Any, *, window: int = 0, global_blocks: int = 0) -> ImageTower:
    """
    Args:
        visual: the image side of an open_clip model; its modules are used as they are.
        window, global_blocks: of transformers, see `TransformerTower`.

    Raises:
        ValueError: the tower has no maps to detect on, or windows are asked of one that has no attention.
    """
    windows = {"window": window, "global_blocks": global_blocks}
    if isinstance(visual, VisionTransformer):
        return OpenClipTransformerTower(visual, **windows)
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, Eva | TimmVisionTransformer):
        return TimmTransformerTower(visual, **windows)
    if window:
        raise ValueError(f"detector.window is for transformers; {type(visual).__name__} is none, leave it out")
    if isinstance(visual, ModifiedResNet):
        return ClipResNetTower(visual)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "feature_info"):
        return TimmConvolutionTower(visual)
    raise ValueError(f"{type(visual).__name__} is not a supported image tower: it has no feature maps")
