"""Resizing of a part of an image for training, in one pass.

Evaluation shrinks images by OpenCV's `INTER_AREA`, the mean over the area that a pixel covers, which takes two to six
times as long. Training uses linear interpolation down to three quarters of the sides, the mean of four interpolated
points per pixel down to half of the sides, and `INTER_AREA` only below.
"""

import cv2
import numpy as np

from ovd.shapes import UInt8

_FOUR_POINTS_BELOW = 0.75
_AREAS_UP_TO = 0.5


def resample(
    pixels: UInt8[np.ndarray, "H W 3"], height: int, width: int, factor_y: float, factor_x: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the upper left `height` x `width` pixels of an image resized by these factors.

    Args:
        pixels: image with at least height / factor_y and width / factor_x pixels, within half a pixel of the result.
        height: height of the result in pixels.
        width: width of the result in pixels.
        factor_y: factor of the height; the resized height need not be a whole number of pixels.
        factor_x: factor of the width, likewise.
    """
    factor = min(factor_y, factor_x)
    if factor_y == factor_x == 1:
        resized = np.ascontiguousarray(pixels[:height, :width])
    elif factor >= _FOUR_POINTS_BELOW:
        resized = cv2.resize(pixels, None, fx=factor_x, fy=factor_y, interpolation=cv2.INTER_LINEAR)
    elif factor > _AREAS_UP_TO:
        points = cv2.resize(pixels, None, fx=2 * factor_x, fy=2 * factor_y, interpolation=cv2.INTER_LINEAR)
        resized = cv2.resize(points[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    else:
        resized = cv2.resize(pixels, None, fx=factor_x, fy=factor_y, interpolation=cv2.INTER_AREA)
    return resized[:height, :width]
