"""Build the crop encoders: CLIP's image side before training, as a detector's teacher or for the second look."""

from typing import Any

from ovd.build.detector import load_original_clip, resolve_compute
from ovd.clip.load import Clip
from ovd.config.training import TrainConfig
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_encoder import CropEncoder, View
from ovd.model.crop_options import CropOptions
from ovd.model.crops import crop_side
from ovd.model.detection_options import SecondLookOptions
from ovd.model.normalization import Normalization
from ovd.precision import Compute

SECOND_LOOK = "eval.second_look"
"""Config section of the second look's options."""


def build_region_teacher(config: TrainConfig, clip: Clip, compute: Compute) -> CropEncoder | None:
    """Build the frozen CLIP teacher of `train.region_distillation`; return None if it is not set.

    Call it before `build_detector`: the detector's backbone is CLIP's image side itself, whose weights will change.

    Raises:
        ValueError: the configured side of a crop does not fit the backbone.
    """
    options = config.train.region_distillation
    if options is None:
        return None
    return build_crop_encoder(clip, options, compute, section="train.region_distillation")


def build_second_look(config: TrainConfig, options: SecondLookOptions | None) -> CropEncoder | None:
    """Load CLIP's image side for second looks, on the run's device; return None without `options`.

    Raises:
        ValueError: the configured side of a crop does not fit the backbone.
    """
    if options is None:
        return None
    return build_crop_encoder(load_original_clip(config), options, resolve_compute(config), section=SECOND_LOOK)


def build_crop_encoder(clip: Clip, options: CropOptions, compute: Compute, *, section: str) -> CropEncoder:
    """Build a crop encoder from a copy of CLIP's image side, as it was before its dense feature was aligned.

    Args:
        section: config section of the options, for error messages.

    Raises:
        ValueError: the backbone does not take crops of a configured size.
    """
    visual = clip.visual_for_crops()
    backbone = backbone_from_visual(visual)
    views = views_of(options, visual, backbone.strides[-1], section=section)
    return CropEncoder(backbone, Normalization(clip.mean, clip.std), views=views, compute=compute)


def views_of(options: CropOptions, visual: Any, stride: int, *, section: str) -> list[View]:
    """Return the views of a box; the default crop side is the largest multiple of the stride up to CLIP's own side.

    Args:
        visual: image side of an open_clip model.
        stride: last stride of the backbone.
        section: config section of the options, for error messages.

    Raises:
        ValueError: the backbone does not take crops of a configured size.
    """
    crop = options.crop or crop_side(visual) // stride * stride
    views = [View(round(relative * crop), context) for context, relative in options.views]
    for view in views:
        if view.side_px % stride or not view.side_px:
            raise ValueError(
                f"{section}.crop and {section}.views give crops of {view.side_px} px; a crop's side must be a "
                f"multiple of {stride}, the backbone's stride"
            )
    return views
