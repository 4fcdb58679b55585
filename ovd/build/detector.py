"""Build the detector of a config: backbone, pyramid, head and shortcuts."""

from itertools import chain
from typing import Any, assert_never

import torch

from ovd.build.experts import num_own_layers
from ovd.choices import Head
from ovd.clip.load import Clip, build_on_meta, load_clip
from ovd.config.alignment import AlignConfig
from ovd.config.training import ClipConfig, DetectorConfig, GatedShortcutsConfig, NoShortcutsConfig, TrainConfig
from ovd.distributed import device_of_rank
from ovd.model.backbone import Backbone
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.detector import Detector
from ovd.model.fcos_head import FcosHead
from ovd.model.fpn import FeaturePyramid, SimplePyramid
from ovd.model.gates import GatedShortcuts, PlainProjection
from ovd.model.low_rank import add_adapters
from ovd.model.normalization import Normalization
from ovd.model.shared_layers import shared_parameters
from ovd.model.side_branch import SideBranch
from ovd.model.t_head import TaskAlignedHead
from ovd.precision import Compute


def load_configured_clip(config: ClipConfig) -> Clip:
    """Load the CLIP model of a config."""
    return load_clip(**config.model_dump())


def load_original_clip(config: TrainConfig) -> Clip:
    """Load CLIP as it was before training, which changes the modules that a detector is built from.

    Leaves torch's global random state as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.train.seed)  # as in training, in case the CLIP weights are random
        return load_configured_clip(config.clip)


def resolve_device(config: TrainConfig | AlignConfig) -> torch.device:
    """Return the device that a run computes on."""
    return device_of_rank(config.train.device)


def resolve_compute(config: TrainConfig | AlignConfig) -> Compute:
    """Return the device that a run computes on, with its precision."""
    return Compute.configured(config.train.precision, resolve_device(config))


def build_backbone(config: TrainConfig, visual: Any) -> Backbone:
    """Build CLIP's backbone with the config's settings.

    Args:
        visual: image side of an open_clip model.

    Raises:
        ValueError: the backbone's family is not supported, or does not support a setting.
    """
    options = config.detector
    windows = {"window": options.window, "global_blocks": options.global_blocks} if options.window else {}
    backbone = backbone_from_visual(visual, **windows)
    if options.freeze_backbone:
        backbone.requires_grad_(False)
    if options.frozen_layers:
        layers = backbone.layers()
        if options.frozen_layers > len(layers):
            raise ValueError(
                f"detector.frozen_layers is {options.frozen_layers}, but {config.clip.name} has {len(layers)} layers"
            )
        for parameter in chain.from_iterable(layers[: options.frozen_layers]):
            parameter.requires_grad_(False)
    if config.expert is not None:
        shared = shared_parameters(backbone, num_own_layers(config.expert, backbone))
        for parameter in shared:
            parameter.requires_grad_(False)
        if config.expert.rank:
            add_adapters(backbone, shared, config.expert.rank)
    if options.recompute:
        backbone.checkpoint_activations()
    if options.drop_path:
        backbone.set_drop_path(options.drop_path)
    return backbone


def build_detector(config: TrainConfig, clip: Clip, *, num_classes: int = 0) -> Detector:
    """Build an untrained detector on CLIP's backbone. The learned path is drawn from torch's global random state.

    Args:
        num_classes: number of classes in the vocabulary; needed only for `expert.learn=names`.
    """
    learns_names = config.expert is not None and config.expert.learn == "names"
    return _assemble(
        config,
        clip.model.visual,
        text_dim=clip.dim,
        normalization=Normalization(clip.mean, clip.std),
        logit_scale=clip.model.logit_scale.exp().item(),
        learned_names=(num_classes, clip.dim) if learns_names else None,
    )


def build_detector_on_meta(config: TrainConfig) -> Detector:
    """Build a detector on torch's meta device, without memory for weights, to count its parameters and operations."""
    model, dim = build_on_meta(config.clip.name)
    with torch.device("meta"):
        normalization = Normalization((0.5,) * 3, (0.25,) * 3)
        return _assemble(config, model.visual, text_dim=dim, normalization=normalization, logit_scale=100.0)


def _assemble(
    config: TrainConfig,
    visual: Any,
    *,
    text_dim: int,
    normalization: Normalization,
    logit_scale: float,
    learned_names: tuple[int, int] | None = None,
) -> Detector:
    options = config.detector
    backbone = build_backbone(config, visual)
    pyramid = _build_pyramid(backbone, options.channels)
    has_side = config.expert is not None and config.expert.learn == "path" and config.expert.side
    detector = Detector(
        backbone,
        pyramid,
        _HEADS[options.head](options.channels, options.num_convs, pyramid.strides),
        _build_shortcuts(options, len(pyramid.strides), text_dim),
        normalization=normalization,
        logit_scale=logit_scale,
        keeps_dense=config.eval.ensemble is not None,
        learned_names=learned_names,
        side=SideBranch(backbone.channels, backbone.strides) if has_side else None,
    )
    if detector.name_offsets is not None:
        detector.requires_grad_(False)
        detector.name_offsets.requires_grad_(True)
    return detector


def _build_pyramid(backbone: Backbone, channels: int) -> FeaturePyramid | SimplePyramid:
    if len(backbone.strides) > 1:
        return FeaturePyramid(backbone.channels, backbone.strides, channels)
    return SimplePyramid(backbone.channels[0], backbone.strides[0], channels)


_HEADS: dict[Head, type[FcosHead] | type[TaskAlignedHead]] = {"fcos": FcosHead, "task_aligned": TaskAlignedHead}


def _build_shortcuts(options: DetectorConfig, num_levels: int, text_dim: int) -> GatedShortcuts | PlainProjection:
    match options.shortcuts:
        case GatedShortcutsConfig() as shortcuts:
            return GatedShortcuts(
                num_levels,
                options.channels,
                text_dim,
                places=shortcuts.places,
                per_channel=shortcuts.per_channel,
                filter_size=shortcuts.filter_size,
            )
        case NoShortcutsConfig():
            return PlainProjection(options.channels, text_dim)
        case other:
            assert_never(other)
