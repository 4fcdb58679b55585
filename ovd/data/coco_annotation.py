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

    Width and height are computed from the rounded corners, so that a box inside its image stays inside.
    """
    x0, y0, x1, y1 = (round(corner, _DECIMALS) for corner in box)
    return [x0, y0, round(x1 - x0, _DECIMALS), round(y1 - y0, _DECIMALS)]
