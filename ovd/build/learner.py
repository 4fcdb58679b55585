"""Build what a training starts from: the detector, its CLIP model and its losses."""

from dataclasses import dataclass

import torch

from ovd.build.crops import SECOND_LOOK, build_region_teacher, views_of
from ovd.build.detector import build_detector, load_configured_clip, resolve_compute
from ovd.build.trained import build_start_detector
from ovd.clip.load import Clip
from ovd.config.training import TrainConfig
from ovd.engine.step import Criterion
from ovd.model.backbone import Backbone
from ovd.model.detector import Detector


@dataclass(frozen=True)
class Learner:
    """A detector before its training, the CLIP model that it starts from, and its losses."""

    clip: Clip
    """CLIP model whose weights the detector starts from; both are on the CPU."""
    detector: Detector
    criterion: Criterion
    """Losses, with the frozen models that they compare the detector with, which are on the run's device."""


def build_learner(config: TrainConfig, *, num_classes: int) -> Learner:
    """Build CLIP, a detector that starts from it, and the losses.

    Weights that do not come from CLIP are drawn from torch's global random state.

    Args:
        num_classes: number of classes that are trained on.

    Raises:
        ValueError: a setting does not fit the backbone or the device, or the starting detector does not fit the config.
    """
    compute = resolve_compute(config)
    clip = load_configured_clip(config.clip)
    # Built before the detector, whose backbone is CLIP's image side itself.
    teacher = build_region_teacher(config, clip, compute)
    detector = build_detector(config, clip, num_classes=num_classes)
    if config.train.deterministic:
        check_deterministic(detector.backbone, compute.device)
    if config.eval.second_look is not None:  # used after training only, so checked now
        views_of(config.eval.second_look, clip.model.visual, detector.backbone.strides[-1], section=SECOND_LOOK)
    start = build_start_detector(config, compute)
    return Learner(clip, detector, Criterion(config.train, config.data.pairs, teacher, start))


def check_deterministic(backbone: Backbone, device: torch.device) -> None:
    """Check that a device can compute all gradients of a backbone with the same bits every time.

    Raises:
        ValueError: the device cannot.
    """
    if device.type == "cuda" and any(parameter.requires_grad for parameter in backbone.resampled_parameters()):
        raise ValueError(
            "train.deterministic=true: torch has no deterministic GPU gradient for the resampled position "
            "embeddings of a transformer. Freeze them with "
            "detector.frozen_layers=1 or detector.freeze_backbone=true, or set train.deterministic=false"
        )
