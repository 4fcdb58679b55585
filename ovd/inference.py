"""Run a detector over one image or over a data set."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from ovd.data.index import AnnotationIndex
from ovd.data.loader import eval_loader
from ovd.data.transforms import eval_transform
from ovd.model.detector import Detector
from ovd.model.postprocess import ScoreEnsemble, postprocess
from ovd.precision import autocast, memory_format
from ovd.structures import Detections, Predictions


@dataclass(frozen=True)
class DetectionOptions:
    """How scores become boxes; see postprocess.py."""

    score_threshold: float
    nms_iou: float
    max_detections: int
    candidates: int
    use_compiled: bool = False
    """Compile what post-processing computes for each pair of point and class: for many images."""


@torch.no_grad()
def predict(
    detector: Detector, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"], *, low_precision: bool
) -> Predictions:
    """What the detector says of a padded batch; nothing at points in the padding.

    Args:
        detector, images, sizes: as for `detect`, images and sizes on the detector's device.
    """
    with autocast(images.device, low_precision):
        predictions = detector(images)
    # A point in the padding (of a coarse level, also beyond the image's own border) was never trained to say anything.
    centers = detector.points(images).centers
    outside = (centers[None] >= sizes.flip(1)[:, None]).any(dim=2)
    return replace(predictions, quality=predictions.quality.masked_fill(outside, -torch.inf))


@torch.no_grad()
def detect(
    detector: Detector,
    text: Float[Tensor, "C D"],
    images: UInt8[Tensor, "B 3 H W"],
    sizes: Int[Tensor, "B 2"],
    original_sizes: Int[Tensor, "B 2"],
    *,
    options: DetectionOptions,
    low_precision: bool,
    ensemble: ScoreEnsemble | None = None,
) -> tuple[Detections, ...]:
    """Detections of a padded batch, in pixels of the original images, on the CPU.

    Args:
        detector: in eval mode, on the device to run on.
        text: unit rows, one per class asked for.
        images: padded at the right and bottom.
        sizes, original_sizes: height and width before padding, and before resizing.
        low_precision: bf16 autocast.
        ensemble: joins the scores with CLIP's.
    """
    device = detector.threshold.device
    images, sizes = images.to(device), sizes.to(device)
    found = postprocess(
        predict(detector, images, sizes, low_precision=low_precision),
        text.to(device),
        scale=detector.scale,
        bias=detector.bias,
        input_sizes=sizes,
        original_sizes=original_sizes.to(device),
        ensemble=ensemble,
        **asdict(options),
    )
    return tuple(Detections(item.boxes.cpu(), item.scores.cpu(), item.classes.cpu()) for item in found)


def prepare(detector: Detector, device: torch.device, *, low_precision: bool) -> Detector:
    """Move a detector to a device, in the layout that goes with the precision, for inference."""
    return detector.to(device).to(memory_format=memory_format(low_precision)).eval()


def detect_image(
    detector: Detector,
    text: Float[Tensor, "C D"],
    image: UInt8[np.ndarray, "H W 3"],
    *,
    size: int,
    options: DetectionOptions,
    low_precision: bool,
    ensemble: ScoreEnsemble | None = None,
) -> Detections:
    """Detections in one RGB image of any size, which is resized to a longest side of `size`."""
    resized = torch.from_numpy(np.ascontiguousarray(eval_transform(size=size)(image))).permute(2, 0, 1)
    height, width = resized.shape[1:]
    padded = F.pad(resized, (0, -width % detector.size_divisor, 0, -height % detector.size_divisor))
    found = detect(
        detector,
        text,
        padded[None],
        torch.tensor([[height, width]]),
        torch.tensor([image.shape[:2]]),
        options=options,
        low_precision=low_precision,
        ensemble=ensemble,
    )
    return found[0]


def detect_dataset(
    detector: Detector,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    *,
    size: int,
    batch_size: int,
    num_workers: int,
    options: DetectionOptions,
    low_precision: bool,
    ensemble: ScoreEnsemble | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Image id and detections of every image of a data set, in its order.

    Raises:
        DataError: an image is missing or cannot be read; an evaluation never leaves one out.
    """
    loader = eval_loader(
        index, size=size, batch_size=batch_size, num_workers=num_workers, size_divisor=detector.size_divisor
    )
    for batch, original_sizes in loader:
        found = detect(
            detector,
            text,
            batch.images,
            batch.sizes,
            original_sizes,
            options=options,
            low_precision=low_precision,
            ensemble=ensemble,
        )
        yield from zip(batch.image_ids, found, strict=True)
