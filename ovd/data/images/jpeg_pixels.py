"""The pixels of ordinary JPEG files by OpenCV's decoder, which takes less time than Pillow's.

Both stand on libjpeg-turbo and give the same pixels; Pillow brings them to four bytes each, and back to three. It is
meant for files of one scan, without a marker that does not belong there (`JpegHeader.is_one_whole_scan`): OpenCV may
fill what follows one with grey, where Pillow stops. Of bits that are damaged otherwise, and read all the same, libjpeg
tells on standard error.
"""

import cv2
import numpy as np

from ovd.shapes import UInt8

_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def jpeg_pixels(content: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """RGB as the file has them, its EXIF rotation not applied; None for a file that cannot be decoded."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), _FLAGS)
    except cv2.error:
        return None
