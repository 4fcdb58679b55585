"""torchvision's FCOS on the same images and boxes, as the peer of the whole detector."""

import warnings
from collections.abc import Callable

import torch
from torchvision.models.detection import FCOS, fcos_resnet50_fpn

from ovd.engine.optim import Ema, clip_gradients
from ovd.precision import autocast, memory_format
from ovd.structures import Batch


def torchvision_fcos(classes: int, size: int, device: torch.device, *, tuned: bool) -> FCOS:
    """FCOS with a ResNet-50 of random weights, all of which learn, for images of this size.

    Args:
        tuned: whether channels come last, as bfloat16 wants them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Changing trainable_backbone_layers has no effect")
        model = fcos_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=classes, min_size=size, max_size=size,
            trainable_backbone_layers=5,
        )  # fmt: skip
    return model.to(device).to(memory_format=memory_format(tuned))


def torchvision_step(model: FCOS, batch: Batch, *, tuned: bool) -> Callable[[], float]:
    """A training step with clipping, fused AdamW and the weight average; returns its loss.

    Args:
        tuned: whether to use bf16 autocast.
    """
    device = batch.images.device
    optimizer, average = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), Ema(model, 0.9998)
    images = [image.float() / 255 for image in batch.images]
    targets = [{"boxes": image.boxes, "labels": image.classes} for image in batch.targets]

    def step() -> float:
        model.train()
        with autocast(device, tuned):
            loss = torch.stack(list(model(list(images), targets).values())).sum()
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        return float(loss.detach())

    return step
