"""Part of an image at another size, in one pass.

Training makes an image smaller by other arithmetic than evaluation (OpenCV's `INTER_AREA`, the mean over the area that
a pixel covers), which takes two to six times as long: down to three quarters of its sides by linear interpolation, and
down to half of them by the mean of four interpolated points for each pixel.
"""

import cv2
import numpy as np

from ovd.shapes import UInt8

_FOUR_POINTS_BELOW = 0.75
_AREAS_UP_TO = 0.5


def resample(
    pixels: UInt8[np.ndarray, "H W 3"], height: int, width: int, factor_y: float, factor_x: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The upper left of an image that is resized by these factors.

    Args:
        pixels: of at least height / factor_y and width / factor_x pixels a side, to half a pixel of the result.
        height: of the result in pixels, as `width`.
        factor_y: of lengths, as `factor_x`; they need not give whole pixels.
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
