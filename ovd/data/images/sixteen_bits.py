"""Conversion of 16-bit pixels to bytes by the bits that are used, since cameras and microscopes store 10 or 12 in 16.

With the high byte alone, such an image would be nearly black.
"""

import numpy as np
from PIL import Image

from ovd.shapes import UInt8, UInt16

_BYTE_BITS = 8
_WHITE_IS_ZERO = 0
_TIFF_PHOTOMETRIC = 262
_WIDE_COLORS = "16-bit colors that cannot be read in this form"


def to_eight_bits(values: UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Return the highest eight of the bits in use: 8, 10, 12, 14 or 16, the fewest that hold the largest value."""
    used = next(bits for bits in (8, 10, 12, 14, 16) if values.max(initial=0) < 1 << bits)
    return (values >> (used - _BYTE_BITS)).astype(np.uint8)


def has_wide_colors(image: Image.Image) -> bool:
    """Whether an image, opened but not decoded yet, is a PNG or TIFF file with 16-bit colors."""
    return image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))


def rescale_used_bits(decoded: Image.Image, content: bytes) -> Image.Image:
    """Convert an image with 16-bit colors to bytes, by the bits that all colors together use.

    Pillow returns the high byte of each color. If no more than 14 bits are used, or one color is transparent, which
    only all 16 bits tell from its neighbors, the file is read again with OpenCV.

    Args:
        decoded: the image decoded by Pillow.
        content: bytes of the file.

    Raises:
        ValueError: OpenCV is missing, or reads other colors than Pillow.
    """
    high_bytes = np.asarray(decoded)
    has_transparent_color = "transparency" in decoded.info
    if not has_transparent_color and high_bytes[..., :3].max(initial=0) >= 1 << 14 - _BYTE_BITS:
        return decoded
    try:
        import cv2  # takes long to import, and few images need it
    except ImportError:
        raise ValueError(f"{_WIDE_COLORS}; install opencv-python-headless, or save the image with 8 bits") from None

    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    num_channels = 4 if has_transparent_color else high_bytes.shape[2]
    if values is not None and values.ndim == 3 and values.shape[2] >= num_channels and values.dtype == np.uint16:
        # OpenCV's order is BGR, and it returns a fourth color, such as infrared, which Pillow leaves out.
        colors, alpha = values[..., 2::-1], values[..., 3:num_channels]
        if np.array_equal(colors // 256, high_bytes[..., :3]):
            colors = to_eight_bits(colors.astype(np.uint16))
            return Image.fromarray(np.concatenate([colors, (alpha // 256).astype(np.uint8)], axis=-1))
    raise ValueError(f"{_WIDE_COLORS}; save the image with 8 bits")


def is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white in a gray TIFF file of up to 16 bits; Pillow inverts those of up to 8 bits itself."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I") and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
