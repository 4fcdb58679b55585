"""Pixels of 16 bits as bytes: by the bits that are used, since cameras and microscopes store 10 or 12 bits in 16.

By the high byte alone such an image would be nearly black.
"""

import numpy as np
from PIL import Image

from ovd.shapes import UInt8, UInt16

_BYTE_BITS = 8
_WHITE_IS_ZERO = 0
_TIFF_PHOTOMETRIC = 262
_WIDE_COLORS = "colors of 16 bits, which cannot be read as they are stored"


def to_eight_bits(values: UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """The highest eight of the bits that an image uses: 8, 10, 12, 14 or 16, the fewest that hold its largest value."""
    used = next(bits for bits in (8, 10, 12, 14, 16) if values.max(initial=0) < 1 << bits)
    return (values >> (used - _BYTE_BITS)).astype(np.uint8)


def has_wide_colors(image: Image.Image) -> bool:
    """Whether an image that is opened, and not decoded yet, is a PNG or TIFF file with colors of 16 bits."""
    return image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))


def with_used_bits(decoded: Image.Image, content: bytes) -> Image.Image:
    """An image with colors of 16 bits, each color by the bits that all of them use.

    Pillow gives the high byte of each color; where fewer than 16 bits are used, the file is read again by OpenCV.

    Args:
        decoded: by Pillow.
        content: the file.

    Raises:
        ValueError: OpenCV reads other colors than Pillow.
    """
    high_bytes = np.asarray(decoded)
    if high_bytes[..., :3].max(initial=0) >= 1 << 14 - _BYTE_BITS:
        return decoded
    try:
        import cv2  # takes long to import, and few images need it
    except ImportError:
        raise ValueError(f"{_WIDE_COLORS}; install opencv-python-headless, or save the image with 8 bits") from None

    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is not None and values.shape == high_bytes.shape and values.dtype == np.uint16:
        colors = values[..., 2::-1]  # OpenCV's order is BGR
        if np.array_equal(colors // 256, high_bytes[..., :3]):
            colors = to_eight_bits(colors.astype(np.uint16))
            return Image.fromarray(np.concatenate([colors, high_bytes[..., 3:]], axis=-1))
    raise ValueError(f"{_WIDE_COLORS}; save the image with 8 bits")


def is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white in a grey TIFF file of up to 16 bits, which Pillow turns round for up to 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I") and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
