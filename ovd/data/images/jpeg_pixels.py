"""Decoding of ordinary JPEG files with OpenCV, which takes less time than with Pillow.

Both use libjpeg-turbo and give the same pixels; Pillow converts them to four bytes per pixel, and back to three. This
decoder is meant for files of one scan without misplaced markers (`JpegHeader.is_one_whole_scan`), after which OpenCV
may fill the image with gray where Pillow raises. For other damage that is decoded anyway, libjpeg writes a warning to
standard error.
"""

import cv2
import numpy as np

from ovd.shapes import UInt8

_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def jpeg_pixels(content: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decode a JPEG file to RGB pixels without applying its EXIF rotation; None if it cannot be decoded."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), _FLAGS)
    except cv2.error:
        return None
