"""Small JPEG pictures as data URIs, for HTML pages that contain their pictures."""

from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image

from ovd.shapes import UInt8

QUALITY = 80


def data_uri(pixels: UInt8[np.ndarray, "H W 3"], *, longest_px: int) -> str:
    """Return `data:image/jpeg;base64,...` of the picture, shrunk to a longest side of `longest_px` if it is larger."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS, reducing_gap=2)
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + b64encode(file.getvalue()).decode()
