"""A photograph that comes with matplotlib: 512 x 600 pixels, with detail that drawn scenes lack."""

from functools import cache

import numpy as np
from matplotlib import cbook
from PIL import Image


@cache
def photo() -> np.ndarray:
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        return np.array(image.convert("RGB"))
