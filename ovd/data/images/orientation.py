"""Orientation of an image by its EXIF metadata."""

from collections.abc import Callable

from PIL import Image

_EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def shown_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Return height and width after the EXIF rotation."""
    return (width, height) if orientation >= 5 else (height, width)


def orientation_of(
    image: Image.Image, read_exif: Callable[[Image.Image], Image.Exif] = lambda image: image.getexif()
) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 if the EXIF data is damaged, since the pixels are intact."""
    if image.format == "TIFF":  # Pillow rotates these itself, including their size
        return 1
    try:
        orientation = read_exif(image).get(_EXIF_ORIENTATION, 1)
    except Exception:  # the EXIF parser raises as freely as the decoders
        return 1
    return orientation if orientation in UPRIGHT else 1
