"""Conversion, IoU and overlap search of boxes in NumPy arrays. Imports no torch."""

import numpy as np

from ovd.shapes import Float, Int64

_MAX_PAIRS_PER_CHUNK = 2**20
"""Approximate number of box pairs whose IoU is computed at a time, which bounds memory."""


def to_xywh(boxes_xyxy: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "M 4"]:
    """Convert xyxy boxes to left, top, width and height."""
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def to_xyxy(boxes_xywh: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "M 4"]:
    """Convert xywh boxes to left, top, right and bottom."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def paired_iou(boxes: Float[np.ndarray, "M 4"], others: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, " M"]:
    """Compute the IoU of each xyxy box with the box in the same row of `others`; 0 for two boxes without area."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    areas, other_areas = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    union = areas + other_areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def overlaps(
    true_groups: Int64[np.ndarray, " R"],
    true_boxes: Float[np.ndarray, "R 4"],
    groups: Int64[np.ndarray, " K"],
    boxes: Float[np.ndarray, "K 4"],
    scores: Float[np.ndarray, " K"],
    *,
    min_iou: float,
) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Find all pairs of a box and a true box of the same group that overlap enough.

    A group is an image, or one class of an image. About `_MAX_PAIRS_PER_CHUNK` pairs are compared at a time, however
    many boxes a group has.

    Args:
        min_iou: smallest IoU of a pair that is returned.

    Returns:
        For each pair, the row in `boxes`, the row in `true_boxes` and the IoU. Pairs are sorted by group, then by
        descending score, then in the order of the true boxes.
    """
    true_order = np.argsort(true_groups, kind="stable")
    first, end = (np.searchsorted(true_groups[true_order], groups, side=side) for side in ("left", "right"))
    some = np.flatnonzero(end > first)
    some = some[np.lexsort([-scores[some], groups[some]])]
    counts = (end - first)[some]
    part_of = np.cumsum(counts) // _MAX_PAIRS_PER_CHUNK
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for part in np.split(np.arange(len(some)), np.flatnonzero(np.diff(part_of)) + 1):
        rows = np.repeat(some[part], counts[part])
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        true_rows = true_order[first[rows] + offsets]
        iou = paired_iou(boxes[rows], true_boxes[true_rows])
        near = iou >= min_iou
        found.append((rows[near], true_rows[near], iou[near]))
    rows, true_rows, iou = map(np.concatenate, zip(*found, strict=True))
    return rows, true_rows, iou
