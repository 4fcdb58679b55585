"""The small fresh detector that tests of several parts look into."""

import copy

import torch

from ovd.clip.load import Clip
from ovd.model.backbone_families import backbone_of
from ovd.model.detector import Detector, Place


def build_detector(
    clip: Clip, *places: Place, per_channel_gates: bool = True, keeps_clip: bool = False, task_aligned: bool = False
) -> Detector:
    """With shortcuts in these places, around a copy of CLIP's backbone; always the same weights."""
    torch.manual_seed(1)
    return Detector(
        backbone_of(copy.deepcopy(clip.model.visual)),
        text_dim=clip.model.visual.head.proj.out_features,
        mean=clip.mean,
        std=clip.std,
        logit_scale=10.0,
        channels=32,
        num_convs=1,
        shortcuts=frozenset(places),
        per_channel_gates=per_channel_gates,
        filter_size=3,
        keeps_clip=keeps_clip,
        task_aligned=task_aligned,
    )
