"""Annotation of one box in COCO format, the same in every file and server response. Imports no torch."""

from collections.abc import Sequence
from typing import Any

_DECIMALS = 2
"""Number of decimals of pixel coordinates, as in the files of COCO and LVIS."""


def coco_annotation(
    number: int,
    image_id: int,
    category_id: int,
    box: Sequence[float],
    *,
    area_px: float | None = None,
    crowd: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Return the annotation of one object, with box and area rounded to two decimals.

    Args:
        number: annotation id.
        box: xyxy in pixels.
        area_px: area of the object; by default that of the rounded box.
        more: further fields, such as `score`, which come last.
    """
    bbox = rounded_xywh(box)
    area = round(bbox[2] * bbox[3] if area_px is None else area_px, _DECIMALS)
    record = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return {**record, "area": area, "iscrowd": crowd, **more}


def rounded_xywh(box: Sequence[float]) -> list[float]:
    """Convert an xyxy box to left, top, width and height with two decimals.

    Width and height are computed from the rounded corners, so that a box inside its image stays inside. A side of 1 px
    does not become 0.99 px, which readers leave out.
    """
    (x, width), (y, height) = (_rounded_side(box[side], box[side + 2]) for side in (0, 1))
    return [x, y, width, height]


def _rounded_side(first: float, last: float) -> tuple[float, float]:
    start = round(first, _DECIMALS)
    length = round(round(last, _DECIMALS) - start, _DECIMALS)
    if length < 1 <= round(last - first, _DECIMALS):  # the start was rounded up, and the end down
        return round(start - 0.01, _DECIMALS), round(length + 0.01, _DECIMALS)
    return start, length
