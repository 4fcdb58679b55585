"""Images encoded as the bytes of a file."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    """Encode an image with Pillow; `format` and `options` are Pillow's."""
    file = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()
