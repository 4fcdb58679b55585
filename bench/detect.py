"""Detection, from images to boxes, against torchvision's FCOS.

    python bench/detect.py                     # CLIP's ResNet-50, 2 images of 320 px
    python bench/detect.py --device cuda       # 16 images of 800 px

Random images, 91 and 1,203 classes, random weights; bf16 autocast and channels last for both where ours uses them. Ours
is timed up to the boxes on the CPU, and its forward pass alone. There is no score threshold, so that each image gives
as many boxes as it may.
"""

from collections.abc import Callable

import torch
from fresh import Fresh, argument_parser, fresh_detector
from measured import medians, save
from peer import torchvision_fcos

from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions
from ovd.precision import autocast, describe_machine

CLASSES = (91, 1203)
CPU_IMAGES, GPU_IMAGES = (2, 320), (16, 800)
MAX_DETECTIONS, NMS_IOU = 300, 0.6
CANDIDATES = 5000
"""As many as torchvision's, which takes 1,000 from each of its five levels."""


def make_forms(fresh: Fresh, classes: int, batch_size: int, size: int) -> dict[str, Callable[[], object]]:
    """Ours, our forward pass, and torchvision's, on the same images."""
    batch, text = fresh.batch(batch_size, size, classes), fresh.text(classes)
    options = DetectionOptions(
        score_threshold=0.0, nms_iou=NMS_IOU, max_detections=MAX_DETECTIONS, candidates=CANDIDATES
    )
    low_precision = fresh.low_precision
    inference = Inference(fresh.detector.eval(), size=size, options=options, low_precision=low_precision)
    peer = torchvision_fcos(classes, size, fresh.device, tuned=low_precision).eval()
    peer.score_thresh, peer.detections_per_img, peer.nms_thresh = 0.0, MAX_DETECTIONS, NMS_IOU
    pixels = [image.float() / 255 for image in batch.images]

    @torch.no_grad()
    def torchvision() -> None:
        with autocast(fresh.device, low_precision):
            found = peer(list(pixels))
        for item in found:
            item["boxes"].cpu()

    return {
        "ours": lambda: inference.detect(text, batch.images, batch.sizes, batch.sizes),
        "forward": lambda: inference.predict(batch.images, batch.sizes),
        "torchvision": torchvision,
    }


def main() -> None:
    parser = argument_parser(__doc__, config="configs/lvis_base_rn50.yaml", batch_size=None, size=None)
    arguments = parser.parse_args()
    device = arguments.device
    images, side = GPU_IMAGES if device.type == "cuda" else CPU_IMAGES
    batch_size, size = arguments.batch_size or images, arguments.size or side
    rows = []
    for classes in CLASSES:
        seconds = medians(make_forms(fresh_detector(arguments.config, device), classes, batch_size, size), device)
        rows.append(
            {
                "classes": classes,
                "milliseconds": {form: round(1000 * value, 1) for form, value in seconds.items()},
                "time_ratio": round(seconds["ours"] / seconds["torchvision"], 3),
            }
        )
        print(rows[-1], flush=True)
    settings = {"config": str(arguments.config), "batch_size": batch_size, "size": size}
    save("detect", {"machine": describe_machine(device), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
