"""Parameter groups of a detector, with a learning rate for each part."""

from typing import Any

from torch import nn

from ovd.config.training import TrainSection
from ovd.engine.parameter_groups import GroupSpec, parameter_groups
from ovd.model.backbone import Backbone
from ovd.model.detector import Detector
from ovd.model.gates import GatedProjection


def build_groups(detector: Detector, settings: TrainSection) -> list[dict[str, Any]]:
    """Build the optimizer's parameter groups of a detector, with the configured learning rates."""
    decay = settings.weight_decay
    learned: list[nn.Module | nn.Parameter] = [detector.pyramid, detector.head]
    if detector.side is not None:
        learned.append(detector.side)
    gates: list[nn.Module | nn.Parameter] = []
    for module in detector.shortcuts.modules():
        if isinstance(module, GatedProjection):
            gates.append(module.gate)
        elif isinstance(module, nn.Conv2d):
            learned.append(module)
    return parameter_groups(
        detector,
        {
            **_backbone_groups(detector.backbone, settings),
            "learned": GroupSpec(learned, weight_decay=decay),
            "gates": GroupSpec(gates, lr_factor=settings.gate_rate),
            **({} if detector.name_offsets is None else {"names": GroupSpec([detector.name_offsets])}),
            "logit": GroupSpec([detector.log_scale, detector.threshold], lr_factor=settings.logit_rate),
        },
    )


def _backbone_groups(backbone: Backbone, settings: TrainSection) -> dict[str, GroupSpec]:
    """Return one group for the backbone, or one per layer with layer-wise decay (BEiT, arXiv:2106.08254)."""
    rate, decay = settings.backbone_rate, settings.weight_decay
    if settings.layer_decay == 1:
        return {"backbone": GroupSpec([backbone], lr_factor=rate, weight_decay=decay)}
    layers = [*backbone.layers(), backbone.projection_parameters()]
    return {
        f"backbone/{number}": GroupSpec(layer, rate * settings.layer_decay ** (len(layers) - 1 - number), decay)
        for number, layer in enumerate(layers)
    }
