"""Color changes: one matrix equals the changes made one after another, and hue changes are those of HSV."""

import random
from itertools import permutations

import cv2
import numpy as np
import pytest
import torch
from photo import photo
from torchvision.transforms.v2 import functional

from ovd.data.loading.color_jitter import ColorChange


def mid_colors() -> np.ndarray:
    """A photograph whose colors stay within 0 to 255 under the changes below."""
    return (photo() // 2 + 60).astype(np.uint8)


def one_after_another(pixels: np.ndarray, change: ColorChange) -> np.ndarray:
    """Apply brightness, contrast and saturation one after another with torchvision, without rounding."""
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for step in change.order:
        if step == 0:
            image = functional.adjust_brightness(image, change.brightness)
        elif step == 1:
            image = functional.adjust_contrast(image, change.contrast)
        elif step == 2:
            image = functional.adjust_saturation(image, change.saturation)
    return (image * 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_one_matrix_equals_the_changes_one_after_another(order):
    image = mid_colors()[::2, ::2]
    for brightness, contrast, saturation in (
        *((1.2, 1.0, 1.0), (1.0, 0.8, 1.0), (1.0, 1.0, 1.3)),
        *((1.1, 0.85, 0.7), (0.8, 1.2, 1.25)),
    ):
        change = ColorChange(brightness, contrast, saturation, order=order)
        np.testing.assert_allclose(change.of(image), one_after_another(image, change), atol=0.75)


def test_order_matters_and_no_change_is_none():
    before, after = (ColorChange(0.7, 1.3, order=order).of(mid_colors()) for order in ((0, 1, 2, 3), (1, 0, 2, 3)))
    np.testing.assert_allclose(before, after, atol=2)  # brightness and contrast may be swapped
    before, after = (ColorChange(hue=0.1, saturation=0.2, order=order).of(mid_colors()) for order in ((2, 3), (3, 2)))
    assert np.abs(before.astype(int) - after).max() > 3
    np.testing.assert_array_equal(ColorChange().of(photo()), photo())


def test_thirds_of_a_turn_exchange_the_channels_as_in_hsv():
    image = photo()
    np.testing.assert_array_equal(ColorChange(hue=1 / 3).of(image), image[..., [2, 0, 1]])
    np.testing.assert_array_equal(ColorChange(hue=-1 / 3).of(image), image[..., [1, 2, 0]])
    colors = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    by_hsv = functional.adjust_hue(torch.from_numpy(colors).permute(2, 0, 1), 1 / 3).permute(1, 2, 0)
    np.testing.assert_allclose(ColorChange(hue=1 / 3).of(colors).astype(int), by_hsv, atol=2)


@pytest.mark.parametrize("hue", [-0.1, -0.03, 0.05, 0.2])
def test_the_hue_turns_as_in_hsv_and_the_mean_of_the_channels_stays(hue):
    image = mid_colors()
    turned = ColorChange(hue=hue).of(image)
    assert np.abs(turned.mean(axis=2) - image.mean(axis=2)).max() < 1
    colorful = np.ptp(image, axis=2) > 60
    hues = [cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 0][colorful].astype(float) / 180 for pixels in (image, turned)]
    moved = (hues[1] - hues[0] + 0.5) % 1 - 0.5
    assert abs(np.median(moved) - hue) < 0.02
    assert np.abs(moved - hue).max() < 0.06
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    np.testing.assert_array_equal(ColorChange(hue=hue).of(gray), gray)


def test_what_leaves_the_range_is_cut_off():
    image = np.array([[[250, 100, 0], [0, 0, 0]]], dtype=np.uint8)
    assert ColorChange(brightness=1.5).of(image)[0, 0].tolist() == [255, 150, 0]
    assert (
        ColorChange(contrast=3).of(np.array([[[200] * 3, [0] * 3]], np.uint8)).ravel().tolist() == [255] * 3 + [0] * 3
    )


@pytest.mark.parametrize("strength", [0.2, 1.5])
def test_drawn_changes_fill_their_ranges(strength):
    generator, py_random = np.random.default_rng(0), random.Random(0)
    changes = [ColorChange.draw(strength, generator, py_random) for _ in range(2000)]
    for name in ("brightness", "contrast", "saturation"):
        values = [getattr(change, name) for change in changes]
        lowest = max(0, 1 - strength)
        np.testing.assert_allclose([min(values), max(values)], [lowest, 1 + strength], atol=0.01 * (1 + strength))
    hues = [change.hue for change in changes]
    np.testing.assert_allclose([min(hues), max(hues)], [-strength / 4, strength / 4], atol=0.005)
    assert {change.order for change in changes} == set(permutations(range(4)))
