"""Conversion of truth and detections to the arrays that hotcoco takes."""

import hotcoco
import numpy as np

from ovd.data.truth import Truth
from ovd.evaluation.results import Results
from ovd.shapes import Float64


def hotcoco_truth(truth: Truth) -> hotcoco.COCO:
    """Convert the truth to a data set of hotcoco. Its annotations are numbered from 1."""
    return hotcoco.COCO.from_arrays(
        truth.image_records(),
        truth.category_records(),
        truth.image_ids,
        truth.category_ids,
        truth.boxes_xywh,
        area=truth.areas_px,
        iscrowd=truth.crowd.astype(np.int64),
    )


def hotcoco_rows(results: Results) -> Float64[np.ndarray, "N 7"]:
    """Return a row per detection: image id, x, y, width, height, score, category id. pycocotools takes them, too."""
    return np.column_stack([results.image_ids, results.boxes_xywh, results.scores, results.category_ids])
