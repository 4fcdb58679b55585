"""A box as an annotation in COCO's form, alike in every file and answer that people get from here. Imports no torch."""

from collections.abc import Sequence
from typing import Any

_DECIMALS = 2
"""Of pixels: as in COCO's and LVIS's own files."""


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
    """The record of one object, its numbers rounded to two decimals.

    Args:
        number: its id.
        box: xyxy in pixels.
        area_px: of the object; by default that of the box as it is written.
        more: further fields, such as `score`, which come last.
    """
    bbox = rounded_xywh(box)
    area = round(bbox[2] * bbox[3] if area_px is None else area_px, _DECIMALS)
    record = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return {**record, "area": area, "iscrowd": crowd, **more}


def rounded_xywh(box: Sequence[float]) -> list[float]:
    """Left, top, width and height of a box (xyxy) with two decimals.

    Corners are rounded, and the sides are what then lies between them, so that a box inside its image stays inside.
    """
    x0, y0, x1, y1 = (round(corner, _DECIMALS) for corner in box)
    return [x0, y0, round(x1 - x0, _DECIMALS), round(y1 - y0, _DECIMALS)]
