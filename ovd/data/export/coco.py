"""Export of boxes in COCO format."""

from typing import Any

import numpy as np

from ovd.data.coco_annotation import coco_annotation
from ovd.data.export.labeled_set import LabeledSet, rows_of


def coco_content(labeled: LabeledSet) -> dict[str, Any]:
    """Return the content of a COCO JSON file.

    Ids count from 1, and each box has an empty `segmentation`, which CVAT needs.
    """
    annotations = list[dict[str, Any]]()
    for image_id, image in enumerate(labeled.images, start=1):
        for box, name, score in rows_of(image.boxes.astype(np.float64), image):
            number = len(annotations) + 1
            annotations.append(coco_annotation(number, image_id, name + 1, box, segmentation=[], score=score))
    return {
        "info": {"description": "boxes of a detector, with their scores"},
        "licenses": [],
        "images": [
            {"id": number, "file_name": image.file, "height": image.height, "width": image.width}
            for number, image in enumerate(labeled.images, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": row, "name": name} for row, name in enumerate(labeled.names, start=1)],
    }
