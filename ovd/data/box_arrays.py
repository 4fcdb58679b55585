"""Boxes in numpy arrays: their two forms, and IoU. Imports no torch."""

import numpy as np

from ovd.shapes import Float


def to_xywh(boxes_xyxy: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "M 4"]:
    """Left, top, width and height of each box."""
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def to_xyxy(boxes_xywh: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "M 4"]:
    """Left, top, right and bottom of each box."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def paired_iou(boxes: Float[np.ndarray, "M 4"], others: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, " M"]:
    """IoU of each box (xyxy) with the one in the same row; 0 for two boxes without area."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    areas, other_areas = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others))
    union = areas + other_areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
