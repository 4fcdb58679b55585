"""A small fresh detector for tests that look into its parts."""

import copy

import torch

from ovd.choices import Place
from ovd.clip.load import Clip
from ovd.model.backbone import Backbone
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.detector import Detector
from ovd.model.fcos_head import FcosHead
from ovd.model.fpn import FeaturePyramid, SimplePyramid
from ovd.model.gates import GatedShortcuts, PlainProjection
from ovd.model.normalization import Normalization
from ovd.model.t_head import TaskAlignedHead

CHANNELS = 32


def detector_around(
    backbone: Backbone,
    *places: Place,
    text_dim: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    per_channel_gates: bool = True,
    keeps_dense: bool = False,
    task_aligned: bool = False,
) -> Detector:
    """Build a detector around a backbone, with shortcuts in these places; without places, with a plain projection."""
    pyramid = (
        FeaturePyramid(backbone.channels, backbone.strides, CHANNELS)
        if len(backbone.strides) > 1
        else SimplePyramid(backbone.channels[0], backbone.strides[0], CHANNELS)
    )
    head = (TaskAlignedHead if task_aligned else FcosHead)(CHANNELS, 1, pyramid.strides)
    shortcuts = (
        GatedShortcuts(
            len(pyramid.strides), CHANNELS, text_dim, places=places, per_channel=per_channel_gates, filter_size=3
        )
        if places
        else PlainProjection(CHANNELS, text_dim)
    )
    normalization = Normalization(mean, std)
    return Detector(
        backbone, pyramid, head, shortcuts, normalization=normalization, logit_scale=10.0, keeps_dense=keeps_dense
    )


def build_detector(
    clip: Clip, *places: Place, per_channel_gates: bool = True, keeps_dense: bool = False, task_aligned: bool = False
) -> Detector:
    """Build a detector around a copy of CLIP's backbone, with shortcuts in these places and always the same weights."""
    torch.manual_seed(1)
    return detector_around(
        backbone_from_visual(copy.deepcopy(clip.model.visual)),
        *places,
        text_dim=clip.model.visual.head.proj.out_features,
        mean=clip.mean,
        std=clip.std,
        per_channel_gates=per_channel_gates,
        keeps_dense=keeps_dense,
        task_aligned=task_aligned,
    )
