"""Random annotation files in LVIS's format, of any size, and random detections in their images."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ovd.evaluation.results import Results

NUM_CLASSES, WIDTH_PX, HEIGHT_PX = 1203, 640, 480
POSITIVES, NEGATIVES = 8, 4
"""Number of classes per image that are known to be present, and known to be absent."""


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = rng.uniform(4, 120, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH_PX, HEIGHT_PX]) - sides)
    return np.concatenate([corners, sides], axis=1).round(2)


def write_annotations(path: Path, num_images: int, boxes_per_image: int, mask_numbers: int) -> None:
    """Write an LVIS v1 file, with masks as polygons of `mask_numbers` coordinates."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        present, absent = np.split(rng.choice(NUM_CLASSES, POSITIVES + NEGATIVES, replace=False) + 1, [POSITIVES])
        images.append(
            {
                "id": image_id, "height": HEIGHT_PX, "width": WIDTH_PX,
                "coco_url": f"http://images.cocodataset.org/train2017/{image_id:012d}.jpg",
                "neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": present[:1].tolist(),
            }
        )  # fmt: skip
        masks = rng.uniform(0, HEIGHT_PX, (boxes_per_image, mask_numbers)).round(2).tolist()
        for number, box in enumerate(_boxes(rng, boxes_per_image).tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": int(present[number % POSITIVES]),
                    "bbox": box, "area": box[2] * box[3], "segmentation": [masks[number]],
                }
            )  # fmt: skip
    categories = [
        {
            "id": row + 1, "name": f"class {row}", "synonyms": [f"class {row}"], "frequency": "rcf"[row % 3],
            "image_count": 10,
        }
        for row in range(NUM_CLASSES)
    ]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def detections_of(path: Path, per_image: int) -> Results:
    """Draw detections in a file's images: true boxes, slightly moved, and others anywhere with lower mean scores."""
    content = json.loads(path.read_text())
    rng = np.random.default_rng(1)
    true = np.array([row["bbox"] for row in content["annotations"]])
    moved = true + rng.normal(0, 2, true.shape)
    moved[:, 2:] = moved[:, 2:].clip(1)
    image_ids = np.array([row["id"] for row in content["images"]])
    others = len(image_ids) * per_image - len(true)
    return Results(
        image_ids=np.concatenate(
            [[row["image_id"] for row in content["annotations"]], np.resize(image_ids, others)]
        ).astype(np.int64),
        category_ids=np.concatenate(
            [[row["category_id"] for row in content["annotations"]], rng.integers(1, NUM_CLASSES + 1, others)]
        ).astype(np.int64),
        boxes_xywh=np.concatenate([moved, _boxes(rng, others)]),
        scores=np.concatenate([rng.uniform(0.3, 1, len(true)), rng.uniform(0, 0.6, others)]),
    )
