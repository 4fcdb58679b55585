"""Build the experts of a detector from their folders."""

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ovd.config.training import ExpertSection, TrainConfig
from ovd.config_files import parse_config
from ovd.experts.folder import (
    TRAINED_TEXT,
    ExpertDescription,
    ExpertError,
    read_expert,
)
from ovd.experts.group import ExpertGroup
from ovd.experts.inference import Expert, ExpertInference
from ovd.files import sha256_of
from ovd.inference import Inference
from ovd.model.backbone import Backbone
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.low_rank import add_stored_adapter
from ovd.model.score_calibration import ScoreCalibration
from ovd.model.shared_layers import copy_sharing_layers, shared_parameters
from ovd.model.side_branch import SideBranch
from ovd.warn import warn


def num_own_layers(section: ExpertSection, backbone: Backbone) -> int:
    """Return the number of backbone layers that an expert owns."""
    return len(backbone.layers()) if section.own_layers == "all" else section.own_layers


def check_experts(group: ExpertGroup, weights: Path) -> None:
    """Check that experts belong to the detector with these weights.

    Args:
        weights: weights file of the detector.

    Raises:
        ExpertError: an expert is missing or damaged, or belongs to another detector.
    """
    base_sha256 = sha256_of(weights)
    for folder in group.folders:
        read_expert(folder).check_base(base_sha256, weights)


def add_experts(
    base: Inference, group: ExpertGroup, *, prefilter: float | None, options: DetectionOptions | None
) -> ExpertInference:
    """Build the inference of a detector with its experts.

    Args:
        base: inference of the detector alone.
        group: experts that belong to the detector (`check_experts`).
        prefilter: replaces `prefilter` in the experts' post-processing settings.
        options: post-processing settings of the experts; by default those that each was trained with, but the second
            look and `max_detections` of `base`.

    Raises:
        ExpertError: an expert is missing or damaged.
    """
    return ExpertInference(
        base,
        [_load_expert(base, folder, prefilter, options) for folder in group.folders],
        same_place=group.same_place,
        nearest=group.nearest,
    )


def _load_expert(base: Inference, folder: Path, prefilter: float | None, options: DetectionOptions | None) -> Expert:
    stored = read_expert(folder)
    description, tensors = stored.description, stored.tensors
    config = parse_config(description.config, TrainConfig, f"{folder}, its config")
    detector, shared = base.detector, None
    if description.learn == "path":
        num_own = len(base.detector.backbone.layers()) if description.rank else description.own_layers
        detector, shared = copy_sharing_layers(base.detector, num_own)
        if any(name.startswith("side.") for name in tensors):
            detector.side = base.compute.freeze(SideBranch(detector.backbone.channels, detector.backbone.strides))
        load_own_parameters(
            detector, base.detector, tensors, folder, adapted=_adapted_names(base.detector, description)
        )
    if options is None:
        # Experts share the base detector's crop encoder, and so its options of the second look.
        options = config.eval.model_copy(
            update={"second_look": base.options.second_look, "max_detections": base.options.max_detections}
        )
    if prefilter is not None:
        options = options.with_prefilter(prefilter)
    calibration = None
    if description.calibration is not None:
        calibration = ScoreCalibration.from_json(description.calibration, tensors[TRAINED_TEXT])
    is_calibrated = calibration is not None and calibration.applies_to(options)
    if is_calibrated != base.is_calibrated:
        which, its_calibration = ("the detector", base.calibration) if is_calibrated else ("the expert", calibration)
        how = "not calibrated (train.calibration)" if its_calibration is None else "calibrated for other eval settings"
        warn(f"{folder}: {which} is {how}, so the scores of the two cannot be compared")
    return Expert(
        description.sha256,
        stored.names,
        replace(base, detector=detector.eval().requires_grad_(False), options=options, calibration=calibration),
        shared,
    )


def _adapted_names(base: Detector, description: ExpertDescription) -> set[str]:
    """Return the names of the parameters that may have adapters: those of layers that the expert does not own."""
    if not description.rank:
        return set()
    below = set(map(id, shared_parameters(base.backbone, description.own_layers)))
    return {name for name, parameter in base.named_parameters() if id(parameter) in below}


def unshared_parameters(detector: Detector, base: Detector) -> dict[str, Tensor]:
    """Return, by name, the parameters of a copy that it does not share with the base detector."""
    shared = {id(parameter) for parameter in base.parameters()}
    return {name: parameter for name, parameter in detector.named_parameters() if id(parameter) not in shared}


@torch.no_grad()
def load_own_parameters(
    detector: Detector, base: Detector, tensors: Mapping[str, Tensor], folder: Path, *, adapted: Set[str]
) -> None:
    """Load an expert's own parameters into a copy of the base detector.

    Args:
        adapted: names of the parameters to which stored adapters are added, if there are any.

    Raises:
        ExpertError: a parameter is missing or has another shape.
    """
    for name, parameter in unshared_parameters(detector, base).items():
        if name in adapted:
            parameter.copy_(add_stored_adapter(name, parameter.cpu(), tensors))
            continue
        stored = tensors.get(name)
        if stored is None or stored.shape != parameter.shape:
            shape = None if stored is None else tuple(stored.shape)
            words = f"{folder}: {name} has the shape {shape}, but the detector needs {tuple(parameter.shape)}"
            earlier = "; the expert is from an earlier version: train it again" if name.startswith("side.") else ""
            raise ExpertError(f"{words}{earlier}")
        parameter.copy_(stored)
