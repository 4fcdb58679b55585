"""Measure detection, from images to boxes, against torchvision's FCOS, and our forward pass alone.

    python bench/detect.py                     # CLIP's ResNet-50, 2 images of 320 px
    python bench/detect.py --device cuda       # 16 images of 800 px

Random images, 91 and 1,203 classes, random weights; bf16 autocast for both where ours has it, channels last for both.
Both have no score threshold, the same number of candidates and the same non-maximum suppression, and their boxes end on
the CPU. If their numbers of boxes differ, no ratio is given.
"""

from collections.abc import Callable

import torch
from inputs import BenchDetector, build_bench_detector, parse_with_sizes
from measured import measure_seconds, milliseconds, save, time_ratio
from peer import torchvision_fcos, torchvision_images
from torch import Tensor

from ovd.inference import ImageBatch
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine

CLASSES = (91, 1203)
ROUNDS = 25
OPTIONS = DetectionOptions(score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=5000)
"""Settings of our detection; torchvision takes 1,000 candidates from each of its five levels."""


def make_forms(
    bench: BenchDetector, num_classes: int, batch_size: int, size: int
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return our detection, our forward pass and torchvision's detection on the same images; each returns its boxes."""
    batch, text, compute = (
        bench.batch(batch_size, size, num_classes),
        bench.text(num_classes),
        bench.compute,
    )
    inference = bench.inference(size=size, options=OPTIONS)
    peer = torchvision_fcos(num_classes, size, bench.device, bench.compute.frozen_memory_format).eval()
    peer.score_thresh, peer.nms_thresh = OPTIONS.score_threshold, OPTIONS.nms_iou
    peer.detections_per_img = OPTIONS.max_detections
    given = torchvision_images(batch)
    queries, images = QueryTexts(text), ImageBatch(batch.images, batch.sizes, batch.sizes)

    def ours() -> list[Tensor]:
        return [found.boxes for found in inference.detect(queries, images)]

    def forward() -> list[Tensor]:
        return list(inference.predict(batch.images, batch.sizes).boxes)

    @torch.no_grad()
    def torchvision() -> list[Tensor]:
        with compute.autocast():
            found = peer(given)
        return [{name: part.cpu() for name, part in item.items()}["boxes"] for item in found]

    return {"ours": ours, "forward": forward, "torchvision": torchvision}


def main() -> None:
    arguments = parse_with_sizes(__doc__)
    device = arguments.device
    rows, ratio = [], {}
    for num_classes in CLASSES:
        bench = build_bench_detector(arguments.config, device)
        forms = make_forms(bench, num_classes, arguments.batch_size, arguments.size)
        counts = {form: list(map(len, forms[form]())) for form in ("ours", "torchvision")}
        if counts["ours"] != counts["torchvision"]:
            raise SystemExit(f"no ratio: numbers of boxes are {counts}")
        seconds = measure_seconds(forms, device, rounds=ROUNDS)
        ratio[f"time, {num_classes:,} classes"] = time_ratio(seconds, "ours", "torchvision")
        rows.append({"classes": num_classes, "milliseconds": milliseconds(seconds)})
        print(rows[-1], flush=True)
    print(ratio)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    save("detect", {"machine": describe_machine(device), "settings": settings, "ratio": ratio, "rows": rows}, device)


if __name__ == "__main__":
    main()
