"""The overlap of two boxes in plain numbers, for references that loop over boxes."""

from collections.abc import Sequence


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Compute the intersection over union of two boxes xyxy."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)
