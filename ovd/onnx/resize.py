"""Resizing of images as in evaluation, without OpenCV.

Images are shrunk by averaging over the area that a pixel covers, and enlarged by linear interpolation. The arithmetic
follows OpenCV's `INTER_AREA` and `INTER_LINEAR` for 8 bits, in its order and precision, so that the pixels are equal
(tests/onnx/test_resize.py): float32 sums for areas, 11-bit fixed point for interpolation.
"""

import math

import numpy as np

from ovd.shapes import Float32, Int64, UInt8

MIN_SHARE = 1e-3
"""Smallest part of a pixel at the border of an area that counts."""
ONE = 2048
"""The number 1 in fixed point."""


def resize(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an image to a longest side of exactly `size` pixels; the other side is rounded to whole pixels."""
    height, width = image.shape[:2]
    factor = size / max(height, width)
    sides = max(1, round(height * factor)), max(1, round(width * factor))
    if sides == (height, width):
        return image
    return _mean_over_areas(image, *sides) if factor < 1 else _interpolated(image, *sides)


def _mean_over_areas(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    old_height, old_width = image.shape[:2]
    if old_height % height == 0 and old_width % width == 0:  # whole pixels, added as integers
        rows, columns = old_height // height, old_width // width
        sums = image.reshape(height, rows, width, columns, 3).sum(axis=(1, 3), dtype=np.int32)
        if rows == columns == 2:  # here OpenCV rounds halves up, elsewhere to even
            return ((sums + 2) >> 2).astype(np.uint8)
        return np.rint(sums.astype(np.float32) * np.float32(1 / (rows * columns))).astype(np.uint8)
    columns, column_shares = _areas(old_width, width)
    rows, row_shares = _areas(old_height, height)
    across = np.zeros((old_height, width, 3), dtype=np.float32)
    for places, shares in zip(columns, column_shares, strict=True):
        across += image[:, places] * shares[:, None]
    mean = np.zeros((height, width, 3), dtype=np.float32)
    for places, shares in zip(rows, row_shares, strict=True):
        mean += across[places] * shares[:, None, None]
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)


def _areas(old: int, new: int) -> tuple[Int64[np.ndarray, "K N"], Float32[np.ndarray, "K N"]]:
    """Divide a line of `old` pixels into `new` areas.

    Returns:
        Positions and weights of the old pixels in each area. K is the number in the largest area; in smaller ones the
        last position is repeated with weight 0.
    """
    step = 1 / (new / old)
    parts = []
    for number in range(new):
        start = number * step
        end, length = start + step, min(step, old - start)
        last = min(math.floor(end), old - 1)
        first = min(math.ceil(start), last)
        area = [(first - 1, (first - start) / length)] if first - start > MIN_SHARE else []
        area += [(place, 1 / length) for place in range(first, last)]
        if end - last > MIN_SHARE:
            area.append((last, min(end - last, 1.0, length) / length))
        parts.append(area)
    most = max(map(len, parts))
    filled = np.array([area + [(area[-1][0], 0.0)] * (most - len(area)) for area in parts])
    return filled[..., 0].T.astype(np.int64), filled[..., 1].T.astype(np.float32)


def _interpolated(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    places, distance = _positions(image.shape[1], width)
    # Beyond the centers of the outer pixels, OpenCV repeats them within a row, and interpolates between equal ones
    # within a column.
    distance = np.where((places < 0) | (places >= image.shape[1] - 1), np.float32(0), distance)
    left, right, left_share, right_share = _neighbors(places, distance, image.shape[1])
    pixels = image.astype(np.int32)
    across = (pixels[:, left] * left_share[:, None] + pixels[:, right] * right_share[:, None]) >> 4
    above, below, above_share, below_share = _neighbors(*_positions(image.shape[0], height), image.shape[0])
    upper = (across[above] * above_share[:, None, None]) >> 16
    lower = (across[below] * below_share[:, None, None]) >> 16
    return np.clip((upper + lower + 2) >> 2, 0, 255).astype(np.uint8)


def _positions(old: int, new: int) -> tuple[Int64[np.ndarray, " N"], Float32[np.ndarray, " N"]]:
    """Return the old pixel before the center of each new pixel, and the distance between their centers."""
    centers = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    places = np.floor(centers)
    return places.astype(np.int64), centers - places


def _neighbors(
    places: Int64[np.ndarray, " N"], distance: Float32[np.ndarray, " N"], old: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two old pixels that each new pixel lies between, and their weights in fixed point."""
    shares = [np.rint(share * np.float32(ONE)).astype(np.int32) for share in (1 - distance, distance)]
    return np.clip(places, 0, old - 1), np.clip(places + 1, 0, old - 1), shares[0], shares[1]
