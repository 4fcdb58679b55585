"""Small detectors as ONNX files, and a comparison of their detections with the detector's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import numpy as np
import torch
from small_backbones import random_visual
from small_detector import detector_around
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from ovd.export.detector import write_detector
from ovd.export.graph import DetectionGraph
from ovd.inference import ImageBatch, Inference
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.model.t_head import TaskAlignedHead
from ovd.onnx.session import Detections as OnnxDetections
from ovd.onnx.session import DetectionSession, Usage
from ovd.structures import Detections

OPTIONS = DetectionOptions(competition=10.0, candidates=300, max_detections=60)
MOST_DIFFERENT = 1e-3
LEAST_IOU = 0.99


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the shape checks off while a graph is traced, since sizes are tensors then."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def random_detector(family: str, *, task_aligned: bool = False) -> Detector:
    """Build a detector around a family's backbone, with weights that give every part an effect and make boxes
    differ."""
    torch.manual_seed(1)
    backbone = backbone_from_visual(random_visual(family))
    with torch.no_grad():
        dim = backbone.dense(torch.zeros(1, 3, *[2 * backbone.size_divisor] * 2)).shape[1]
    mean, std = (0.5,) * 3, (0.25,) * 3
    detector = detector_around(backbone, "pyramid", "head", text_dim=dim, mean=mean, std=std, task_aligned=task_aligned)
    for parameter in detector.shortcuts.parameters():
        nn.init.normal_(parameter, std=0.05)
    head = detector.head
    last = (head.quality[-1], head.offsets[-1]) if isinstance(head, TaskAlignedHead) else (head.quality,)
    for part in (head.distances, *last):
        assert isinstance(part, nn.Conv2d)
        nn.init.normal_(part.weight, std=0.1)
    detector.set_bias(-3.0)
    return detector.eval()


def unit_rows(number: int, dim: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(number, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def calibration_of(dim: int, options: DetectionOptions) -> ScoreCalibration:
    """Make a calibration each part of which has an effect."""
    return ScoreCalibration(0.1, ScoreMap(1.2, 0.5, 0.3, -2.0), 0.3, options, unit_rows(20, dim, seed=9))


def both_forms(detector: Detector, path: Path, options: DetectionOptions) -> tuple[Inference, DetectionSession]:
    """Return a detector's own inference and a session of its exported ONNX file."""
    dim = dim_of(detector)
    calibration = calibration_of(dim, options)
    with unchecked():
        usage = Usage(size=96, size_divisor=detector.size_divisor, threshold=0.3, dim=dim)
        write_detector(DetectionGraph(detector, options, calibration), path, usage)
    inference = Inference(detector, size=96, options=options, low_precision=False, calibration=calibration)
    return inference, DetectionSession(path, threads=1)


def dim_of(detector: Detector) -> int:
    with torch.no_grad():
        side = detector.size_divisor
        return detector(torch.zeros(1, 3, side, side, dtype=torch.uint8)).embeddings.shape[2]


def noise_of(batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make a batch of images of this size (channels first), each with padding of its own, and their unpadded sizes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8, width // 8, generator=generator) * 255
    images = F.interpolate(coarse, size=(height, width), mode="bilinear").to(torch.uint8)
    shares = 0.6 + 0.4 * torch.rand(batch, 2, generator=generator)
    sizes = (shares * torch.tensor([height, width])).long()
    for image, size in zip(images, sizes.tolist(), strict=True):
        image[:, size[0] :], image[:, :, size[1] :] = 0, 0
    return images, sizes


def detections_of_both(
    inference: Inference, session: DetectionSession, images: Tensor, sizes: Tensor, text: Tensor
) -> list[tuple[Detections, OnnxDetections]]:
    own = inference.detect(QueryTexts(text), ImageBatch(images, sizes, sizes))
    exported = session(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()), sizes.numpy(), text.numpy())
    return list(zip(own, exported, strict=True))


def num_without_equal(own: Detections, exported: OnnxDetections) -> int:
    """Count the detections on either side without an equal (class, box and score) on the other."""
    if not len(own.scores) or not len(exported.scores):
        return len(own.scores) + len(exported.scores)
    boxes, scores, classes = map(torch.from_numpy, (exported.boxes, exported.scores, exported.classes))
    equal = box_iou(own.boxes.double(), boxes.double()) > LEAST_IOU
    equal &= (own.scores[:, None] - scores).abs() < MOST_DIFFERENT
    equal &= own.classes[:, None] == classes
    return int((~equal.any(dim=1)).sum() + (~equal.any(dim=0)).sum())
