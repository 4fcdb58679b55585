"""Pictures of the best and the worst images of an evaluation, with their true boxes and detections."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ovd.data.images.image_file import ImageError
from ovd.data.images.read import read_image
from ovd.data.images.thumbnails import data_uri
from ovd.data.index import AnnotationIndex
from ovd.evaluation.measures import Measures
from ovd.shapes import Bool, Float64, Int64

NUM_PICTURES = 12
"""Maximum number of best images shown, and of worst images."""
MAX_SIDE_PX = 640
MAX_BOXES = 80
"""Maximum number of boxes in one picture: missed ones first, then the best detections, then found true boxes."""

_Kind = Literal["right", "wrong", "missed", "unknown", "true"]
_KINDS: tuple[_Kind, ...] = ("right", "wrong", "missed", "unknown", "true")
"""Kinds of boxes in the order of the page's script. `unknown`: a detection that is not judged, since objects of its
class may lack a box in the image."""


@dataclass(frozen=True)
class _ImageCounts:
    """Numbers of right, wrong and missed boxes in each image of the truth."""

    right: Int64[np.ndarray, " N"]
    wrong: Int64[np.ndarray, " N"]
    missed: Int64[np.ndarray, " N"]

    @property
    def f1(self) -> Float64[np.ndarray, " N"]:
        """F1 of the boxes in each image; 0 for an image without any."""
        boxes = 2 * self.right + self.wrong + self.missed
        return np.divide(2 * self.right, boxes, out=np.zeros(len(boxes)), where=boxes > 0)


def build_pictures(measures: Measures, index: AnnotationIndex | None) -> dict[str, Any]:
    """Return the pictures and a sentence about their choice, in the form that the page's script reads.

    Args:
        index: annotations with the paths of the images; None for no pictures.
    """
    if index is None:
        return {"images": {}, "image_note": "No pictures, since the folder of images was not given."}
    tally = _tally(measures)
    has_file = np.isin(measures.truth.ids_of_images, index.image_ids)
    shown = {
        name: [_picture(measures, tally, index, row) for row in rows]
        for name, rows in choose_images(tally, has_file).items()
    }
    note = (
        f"The images with the lowest and the highest F1 of boxes at IoU 0.5, of {len(measures.truth.images):,}; among "
        "equal ones, those with the most wrong and missed boxes, or with the most correct boxes."
    )
    return {"images": shown, "image_note": note}


def _tally(measures: Measures) -> _ImageCounts:
    verdicts, truth = measures.decisions.verdicts, measures.truth

    def count(images: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " N"]:
        return np.bincount(truth.image_rows(images), minlength=len(truth.images)).astype(np.int64)

    found = verdicts.reported.image_ids
    return _ImageCounts(
        right=count(found[verdicts.is_right & verdicts.is_counted]),
        wrong=count(found[~verdicts.is_right & verdicts.is_counted]),
        missed=count(truth.image_ids[verdicts.true_rows[~verdicts.is_found]]),
    )


def choose_images(tally: _ImageCounts, has_file: Bool[np.ndarray, " N"]) -> dict[str, list[int]]:
    """Choose the rows of the worst and of the best images among those with a box that counts; none is in both.

    Args:
        has_file: mask of the truth's images that are in the index; some formats list images that do not exist.
    """
    errors = tally.wrong + tally.missed
    some = np.flatnonzero((errors + tally.right > 0) & has_file)
    worst = some[np.lexsort([tally.right[some], -errors[some], tally.f1[some]])]
    best = some[np.lexsort([-tally.right[some], -tally.f1[some]])]
    num_worst = min(NUM_PICTURES, -(-len(some) // 2))
    shown = worst[:num_worst].tolist()
    return {"worst": shown, "best": [row for row in best.tolist() if row not in shown][:NUM_PICTURES]}


def _picture(measures: Measures, tally: _ImageCounts, index: AnnotationIndex, row: int) -> dict[str, Any]:
    image_id = measures.truth.images[row].id
    record = index.record(int(np.flatnonzero(index.image_ids == image_id)[0]))
    picture, fault = None, ""
    try:
        pixels = read_image(record.path, expected_size=(record.height, record.width))
        picture = data_uri(pixels, longest_px=MAX_SIDE_PX)
    except ImageError as error:
        fault = str(error)
    boxes = _boxes(measures, image_id)
    return {
        "file": record.path.name,
        "id": str(image_id),  # numbers in JavaScript are exact up to 2^53 only
        "width": record.width,
        "height": record.height,
        "picture": picture,
        "fault": fault,
        "f1": round(float(tally.f1[row]), 4),
        **{name: int(getattr(tally, name)[row]) for name in ("right", "wrong", "missed")},
        "boxes": boxes[:MAX_BOXES],
        "hidden": max(0, len(boxes) - MAX_BOXES),
    }


def _boxes(measures: Measures, image_id: int) -> list[list[Any]]:
    """Return the boxes of an image: x, y, width, height, class row, kind and score.

    Missed boxes come first, then detections, best first, then found true boxes.
    """
    verdicts, truth = measures.decisions.verdicts, measures.truth
    true_rows = verdicts.true_rows
    here = truth.image_ids[true_rows] == image_id

    def of_truth(kind: _Kind, rows: Int64[np.ndarray, " M"]) -> list[list[Any]]:
        classes = truth.category_rows(truth.category_ids[rows]).tolist()
        boxes = truth.boxes_xywh[rows].round(1).tolist()
        return [[*box, name, _KINDS.index(kind), None] for box, name in zip(boxes, classes, strict=True)]

    chosen = verdicts.reported.image_ids == image_id
    found, right, counted = verdicts.reported.take(chosen), verdicts.is_right[chosen], verdicts.is_counted[chosen]
    kinds = np.where(counted, np.where(right, _KINDS.index("right"), _KINDS.index("wrong")), _KINDS.index("unknown"))
    classes = truth.category_rows(found.category_ids).tolist()
    scores = [round(score, 3) for score in found.scores.tolist()]  # NumPy rounds very large ones to infinity
    columns = (found.boxes_xywh.round(1).tolist(), classes, kinds.tolist(), scores)
    detections = [[*box, name, kind, score] for box, name, kind, score in zip(*columns, strict=True)]
    detections.sort(key=lambda row: -row[-1])
    missed = of_truth("missed", true_rows[here & ~verdicts.is_found])
    return missed + detections + of_truth("true", true_rows[here & verdicts.is_found])
