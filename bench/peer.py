"""torchvision's FCOS on the same images and boxes, the peer of the whole detector."""

from collections.abc import Callable

import torch
from torchvision.models.detection import FCOS, fcos_resnet50_fpn

from ovd.engine.ema import Ema
from ovd.precision import autocast
from ovd.structures import Batch


def torchvision_fcos(num_classes: int, size: int, device: torch.device, layout: torch.memory_format) -> FCOS:
    """Build FCOS with a ResNet-50 of random weights, all of which learn, in this layout and for images of this size."""
    torch.manual_seed(0)
    model = fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes, min_size=size, max_size=size
    )
    return model.to(device).to(memory_format=layout)


def torchvision_images(batch: Batch) -> list[torch.Tensor]:
    """Return the images of a batch as torchvision expects them, float32 in 0..1."""
    return [image.float() / 255 for image in batch.images.contiguous()]


def torchvision_step(model: FCOS, batch: Batch, *, tuned: bool) -> Callable[[], object]:
    """Return a function that takes torchvision's training step, with our clipping, fused AdamW and weight average.

    Args:
        tuned: whether to use bf16 autocast.
    """
    model.train()
    optimizer, average = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), Ema(model, 0.9998)
    images = torchvision_images(batch)
    targets = [{"boxes": image.boxes, "labels": image.classes} for image in batch.targets]

    def step() -> None:
        with autocast(batch.images.device, tuned):
            loss = torch.stack(list(model(images, targets).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        if not loss.isfinite():
            raise SystemExit("no ratio: torchvision's loss is not finite")
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)

    return step
