"""Resized pixels equal those of evaluation, which uses OpenCV."""

import numpy as np
import pytest
from PIL import Image

from ovd.data.loading.transforms import eval_transform
from ovd.onnx.resize import resize


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Make a picture of noise for odd seeds, a smooth one for even seeds."""
    generator = np.random.default_rng(seed)
    if seed % 2:
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = generator.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, 192), (384, 384, 192), (576, 576, 192), (427, 640, 192), (1, 400, 192), (400, 2, 64),
        (193, 190, 192), (48, 64, 192), (1, 3, 64), (96, 96, 192), (191, 150, 192), (192, 100, 192), (1, 1, 32),
    ],
)  # fmt: skip
def test_pixels_equal_opencvs(height, width, size):
    transform = eval_transform(size=size)
    for seed in range(2):
        image = picture(height, width, seed)
        np.testing.assert_array_equal(resize(image, size), transform(image))


def test_pixels_equal_opencvs_for_any_sides():
    generator, transforms = np.random.default_rng(0), {size: eval_transform(size=size) for size in (64, 96, 192)}
    for seed in range(40):
        (height, width), size = generator.integers(1, 300, 2), (64, 96, 192)[seed % 3]
        image = picture(height, width, seed)
        np.testing.assert_array_equal(resize(image, size), transforms[size](image))
