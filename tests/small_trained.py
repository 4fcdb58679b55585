"""A small untrained detector with its config and CLIP, in the form that inference takes."""

import copy
from typing import Any

import torch
from merged import merged

from ovd.build.detector import build_detector
from ovd.build.trained import TrainedDetector
from ovd.clip.load import Clip
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config


def small_trained(clip: Clip, *classes: str, **changes: Any) -> TrainedDetector:
    """Build a detector around a copy of CLIP's backbone, always with the same weights, as if trained on these classes.

    `changes` is merged into the sections of the config.
    """
    values: dict[str, Any] = {
        "output": "none",
        "detector": {"channels": 32, "num_convs": 1},
        "data": {"size": 64},
        "train": {"steps": 1, "precision": "float32"},
    }
    config = parse_config(merged(values, changes), TrainConfig, "test")
    torch.manual_seed(0)
    return TrainedDetector(build_detector(config, copy.deepcopy(clip)).eval(), config, clip, classes)
