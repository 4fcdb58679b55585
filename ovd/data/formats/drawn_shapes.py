"""Bounding boxes, xyxy in pixels, of the shapes that annotation tools draw."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]


def around_points(points: Sequence[tuple[float, float]]) -> Box:
    """Return the bounding box of one or more points (x, y)."""
    x, y = zip(*points, strict=True)
    return min(x), min(y), max(x), max(y)


def around_turned_box(box: Box, angle: float) -> Box:
    """Return the bounding box of a box that is rotated about its center by an angle in radians."""
    if not angle:
        return box
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    width, height = (right - left) / 2, (bottom - top) / 2
    wide = abs(width * math.cos(angle)) + abs(height * math.sin(angle))
    high = abs(width * math.sin(angle)) + abs(height * math.cos(angle))
    return x - wide, y - high, x + wide, y + high


def around_ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0) -> Box:
    """Return the bounding box of an ellipse that is rotated about its center by an angle in radians."""
    wide = math.hypot(radius_x * math.cos(angle), radius_y * math.sin(angle))
    high = math.hypot(radius_x * math.sin(angle), radius_y * math.cos(angle))
    return x - wide, y - high, x + wide, y + high
