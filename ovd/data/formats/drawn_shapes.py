"""Boxes around the shapes that annotation tools draw, xyxy in pixels."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]


def around_points(points: Sequence[tuple[float, float]]) -> Box:
    """The box around at least one point x, y."""
    x, y = zip(*points, strict=True)
    return min(x), min(y), max(x), max(y)


def around_turned_box(box: Box, angle: float) -> Box:
    """The box around a box that is turned about its centre by an angle in radians."""
    if not angle:
        return box
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    width, height = (right - left) / 2, (bottom - top) / 2
    wide = abs(width * math.cos(angle)) + abs(height * math.sin(angle))
    high = abs(width * math.sin(angle)) + abs(height * math.cos(angle))
    return x - wide, y - high, x + wide, y + high


def around_ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0) -> Box:
    """The box around an ellipse that is turned about its centre by an angle in radians."""
    wide = math.hypot(radius_x * math.cos(angle), radius_y * math.sin(angle))
    high = math.hypot(radius_x * math.sin(angle), radius_y * math.cos(angle))
    return x - wide, y - high, x + wide, y + high
