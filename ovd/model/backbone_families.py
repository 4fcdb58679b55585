"""Choice of a CLIP model's backbone by the type of its image side."""

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from ovd.model.backbone import Backbone
from ovd.model.backbone_convolution import ClipResNetBackbone, TimmConvolutionBackbone
from ovd.model.backbone_transformer import OpenClipTransformerBackbone, TimmTransformerBackbone


def backbone_from_visual(visual: Any, *, window: int = 0, global_blocks: int = 0) -> Backbone:
    """Wrap a CLIP model's image side as a backbone.

    Args:
        visual: the image side of an open_clip model. Its modules become the backbone's and still compute the same in
            eval mode; stochastic depth from the model's own config is turned off.
        window, global_blocks: for transformers, see `TransformerBackbone`.

    Raises:
        ValueError: the model has no feature maps to detect on, or a window is given for a model that is no transformer.
    """
    windows = {"window": window, "global_blocks": global_blocks}
    if isinstance(visual, VisionTransformer):
        return OpenClipTransformerBackbone(visual, **windows)
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, Eva | TimmVisionTransformer):
        return TimmTransformerBackbone(visual, **windows)
    if window:
        raise ValueError(f"detector.window is only for transformers; {type(visual).__name__} needs detector.window=0")
    if isinstance(visual, ModifiedResNet):
        return ClipResNetBackbone(visual)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "feature_info"):
        return TimmConvolutionBackbone(visual)
    raise ValueError(f"{type(visual).__name__} is not a supported backbone: it has no feature maps")
