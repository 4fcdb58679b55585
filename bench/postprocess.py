"""Measure post-processing, from predictions to boxes, against torchvision's and against the matrix product alone.

    python bench/postprocess.py                            # 1 image of 640 px, 1,203 classes
    python bench/postprocess.py --device cuda --images 16

Random embeddings of 1,024 dimensions, boxes and qualities at all points; embeddings are in bf16 where the forward pass
gives that. torchvision's logits are computed from the same embeddings, in float32. There is no score threshold. Unless
both find the same 300 boxes with the same names and scores, no ratio is given.
"""

import argparse

import torch
from measured import measure_seconds, milliseconds, save, time_ratio
from peer import torchvision_fcos
from torch import Tensor
from torch.nn import functional as F

from ovd.model.detection_options import DetectionOptions
from ovd.model.fcos_head import make_points
from ovd.model.postprocess import postprocess
from ovd.model.similarity import TextClassifier, initial_bias, unit_embeddings
from ovd.precision import describe_machine, use_low_precision
from ovd.structures import Detections, Predictions

SIZE, DIM, NUM_CLASSES, STRIDES, SCALE = 640, 1024, 1203, [8, 16, 32, 64, 128], 100.0
OPTIONS = DetectionOptions(score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=5000)
"""Settings of our detection; torchvision takes 1,000 candidates from each of its five levels."""
LARGEST_DIFFERENCE = {"scores": 1e-4, "boxes": 1e-2}
SMALLEST_SHARE = 0.99
"""Smallest share of boxes that both must find: rounding decides which is the last."""


class Case:
    """Predictions of some images, and the forms of their post-processing."""

    def __init__(self, num_images: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        points = make_points((SIZE, SIZE), STRIDES, torch.device("cpu"))
        self.model = torchvision_fcos(NUM_CLASSES, SIZE, device, torch.contiguous_format)
        self.model.score_thresh, self.model.nms_thresh = OPTIONS.score_threshold, OPTIONS.nms_iou
        self.model.detections_per_img = OPTIONS.max_detections
        half = points.strides[:, None] / 2
        self.anchors = torch.cat([points.centers - half, points.centers + half], dim=1).to(device)
        shape = (num_images, len(half))
        self.distances = (4 * torch.rand(*shape, 4, generator=generator)).to(device)
        embeddings = torch.randn(*shape, DIM, generator=generator).to(device)
        self.predictions = Predictions(
            embeddings.bfloat16() if use_low_precision("auto", device) else embeddings,
            torch.stack([self.model.box_coder.decode(image, self.anchors) for image in self.distances]),
            torch.randn(*shape, generator=generator).to(device),
        )
        text = F.normalize(torch.randn(NUM_CLASSES, DIM, generator=generator), dim=1).to(device)
        bias = initial_bias(self.predictions.embeddings[0], text, scale=SCALE)
        ids = torch.arange(NUM_CLASSES, device=device)
        scale_and_bias = (torch.tensor(value, device=device) for value in (SCALE, bias))
        self.classifier = TextClassifier(text, ids, *scale_and_bias)
        self.sizes = torch.full((num_images, 2), SIZE, device=device)
        self.level_lengths = [int((points.strides == stride).sum()) for stride in STRIDES]

    def ours(self) -> tuple[Detections, ...]:
        return postprocess(
            self.predictions, [self.classifier], input_sizes=self.sizes, original_sizes=self.sizes, options=OPTIONS
        )

    @torch.no_grad()
    def torchvision(self) -> list[dict[str, Tensor]]:
        logits = SCALE * (unit_embeddings(self.predictions.embeddings) @ self.classifier.text.T) + self.classifier.bias
        outputs = {
            name: list(value.split(self.level_lengths, dim=1))
            for name, value in (
                ("cls_logits", logits),
                ("bbox_regression", self.distances),
                ("bbox_ctrness", self.predictions.quality[..., None]),
            )
        }
        anchors = list(self.anchors.split(self.level_lengths))
        count = len(self.sizes)
        found = self.model.postprocess_detections(outputs, [anchors] * count, [(SIZE, SIZE)] * count)
        return [{name: value.cpu() for name, value in of_image.items()} for of_image in found]

    def product(self) -> Tensor:
        return self.predictions.embeddings.float() @ self.classifier.text.T


def check(ours: tuple[Detections, ...], theirs: list[dict[str, Tensor]]) -> None:
    """Stop unless both have found the same boxes, classes and scores."""
    for found, expected in zip(ours, theirs, strict=True):
        if len(found.scores) != len(expected["scores"]):
            raise SystemExit(f"no ratio: {len(found.scores)} boxes, torchvision has {len(expected['scores'])}")
        same = found.classes[:, None] == expected["labels"]
        same &= torch.cdist(found.boxes, expected["boxes"], p=torch.inf) < LARGEST_DIFFERENCE["boxes"]
        share = float(same.any(dim=1).float().mean())
        of_scores = float((found.scores - expected["scores"]).abs().max())
        if of_scores > LARGEST_DIFFERENCE["scores"] or share < SMALLEST_SHARE:
            raise SystemExit(f"no ratio: {share:.1%} of the boxes are the same, scores differ by {of_scores}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    device = arguments.device
    case = Case(arguments.images, device)
    check(case.ours(), case.torchvision())
    forms = {"ours": case.ours, "torchvision": case.torchvision, "product": case.product}
    seconds = measure_seconds(forms, device)
    ratio = {f"time of {peer}": time_ratio(seconds, "ours", peer) for peer in ("product", "torchvision")}
    settings = {"images": arguments.images, "size": SIZE, "dim": DIM, "classes": NUM_CLASSES}
    result = {"machine": describe_machine(device), "settings": settings, "ratio": ratio}
    result["milliseconds"] = milliseconds(seconds)
    print(result)
    save("postprocess", result, device)


if __name__ == "__main__":
    main()
