"""HTML page to review the boxes that a detector is least sure of: accept, reject, rename, save as COCO JSON.

The page holds every box of the data set, so that the saved file is the whole set with the changes. Pictures are
embedded only for the boxes to review.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.coco_annotation import rounded_xywh
from ovd.data.export.labeled_set import LabeledSet
from ovd.data.images.read import read_image
from ovd.data.images.thumbnails import data_uri
from ovd.files import atomic_write
from ovd.html_page import fill_page
from ovd.shapes import Float32, UInt8

LONGEST_PX = 360
"""Longest side of an embedded picture in pixels."""
_SMALLEST_CROP_PX = 160
_CONTEXT = 2.5
"""Side of a crop, as a multiple of the box's longer side."""


def write_review(
    kept: LabeledSet,
    below: LabeledSet,
    thresholds: Sequence[float],
    path: Path,
    *,
    limit: int,
    title: str,
    saved_as: str,
    kind: str = "score",
) -> int:
    """Write the review page.

    Args:
        kept: all boxes at or above the threshold.
        below: boxes under the threshold, of the same images; those shown are saved only if they are accepted.
        thresholds: score threshold of each class.
        limit: largest number of boxes shown; those with the score nearest to the threshold are chosen.
        title: name of the data set under review.
        saved_as: name of the file that the page saves.
        kind: name of the score on the page.

    Returns:
        Number of boxes shown.
    """
    rows = _rows(kept, is_kept=True)
    num_kept = len(rows)
    rows += _rows(below, is_kept=False)
    distance = np.array([abs(row[6] - thresholds[row[1]]) for row in rows])
    shown = np.argsort(distance, kind="stable")[:limit].tolist()
    chosen_below = [row for row in shown if row >= num_kept]
    position = {row: num_kept + number for number, row in enumerate(chosen_below)}
    crops = _crops(kept, rows, shown)
    data = {
        "title": title,
        "kind": kind,
        "saved_as": saved_as,
        "names": kept.names,
        "thresholds": [round(threshold, 4) for threshold in thresholds],
        "images": [[image.file, image.height, image.width] for image in kept.images],
        "boxes": rows[:num_kept] + [rows[row] for row in chosen_below],
        "shown": [[position.get(row, row), *crops[row]] for row in shown],
        "num_below": len(rows) - num_kept,
    }
    with atomic_write(path) as file:
        file.write(fill_page("review", title=f"Review of {title}", data=data))
    return len(shown)


def _rows(labeled: LabeledSet, *, is_kept: bool) -> list[list[Any]]:
    """Return image, class, x, y, width, height, score and `is_kept` (0 or 1) of each box."""
    rows = []
    for number, image in enumerate(labeled.images):
        scores = image.scores.astype(np.float64).round(4).tolist()
        for box, name, score in zip(image.boxes.tolist(), image.classes.tolist(), scores, strict=True):
            rows.append([number, name, *rounded_xywh(box), score, int(is_kept)])
    return rows


def _crops(kept: LabeledSet, rows: Sequence[list[Any]], shown: Sequence[int]) -> dict[int, list[Any]]:
    """Return x, y, width, height and picture of the crop around each box shown; each image is read once."""
    rows_by_image = defaultdict[int, list[int]](list)
    for row in shown:
        rows_by_image[rows[row][0]].append(row)
    crops = {}
    for number, here in rows_by_image.items():
        pixels = read_image(kept.root / kept.images[number].file)
        for row in here:
            x, y, width, height = crop_around(pixels, np.array(rows[row][2:6], np.float32))
            picture = data_uri(pixels[y : y + height, x : x + width], longest_px=LONGEST_PX)
            crops[row] = [x, y, width, height, picture]
    return crops


def crop_around(pixels: UInt8[np.ndarray, "H W 3"], box_xywh: Float32[np.ndarray, "4"]) -> list[int]:
    """Return x, y, width and height of the part of an image that shows a box with its surroundings."""
    side = max(_SMALLEST_CROP_PX, _CONTEXT * float(box_xywh[2:].max()))
    center = box_xywh[:2] + box_xywh[2:] / 2
    limits = np.array([pixels.shape[1], pixels.shape[0]])
    size = np.minimum(np.ceil(side), limits).astype(int)
    start = np.clip((center - size / 2).round().astype(int), 0, limits - size)
    return [*start.tolist(), *size.tolist()]
