"""Resized photographs: each point comes from the place given by the factors, and shrinking averages over areas."""

import cv2
import numpy as np
import pytest
from encoded_images import encode
from photo import photo

from ovd.data.images.read import decode_image, read_image
from ovd.data.loading.resample import resample

FACTORS = [2.7, 1.3, 1.0, 0.95, 0.8, 0.74, 0.6, 0.51, 0.5, 0.3]


@pytest.mark.parametrize("factor", FACTORS)
def test_a_point_of_the_result_is_where_the_factors_say(factor):
    # A ramp keeps its values under any symmetric mean; the factors do not give whole pixels.
    factor_y, factor_x = factor * 1.004, factor
    y, x = np.mgrid[:61, :87]
    ramp = np.stack([x * 2, y * 3, 255 - x * 2], axis=-1).astype(np.uint8)
    height, width = round(60 * factor_y), round(86 * factor_x)
    found = resample(ramp, height, width, factor_y, factor_x)
    assert found.shape == (height, width, 3)
    in_y, in_x = (np.arange(height) + 0.5) / factor_y - 0.5, (np.arange(width) + 0.5) / factor_x - 0.5
    inside = (slice(3, -3), slice(3, -3))  # the border pixels repeat outside
    np.testing.assert_allclose(found[..., 0][inside], np.broadcast_to(in_x * 2, (height, width))[inside], atol=1)
    np.testing.assert_allclose(found[..., 1][inside], np.broadcast_to(in_y * 3, (width, height)).T[inside], atol=1)


@pytest.mark.parametrize("factor", [factor for factor in FACTORS if factor < 1])
def test_smaller_photographs_are_nearly_the_means_over_areas(factor):
    height, width = round(600 * factor), round(512 * factor)
    found = resample(photo(), height, width, height / 600, width / 512)
    areas = cv2.resize(photo(), (width, height), interpolation=cv2.INTER_AREA)
    difference = np.abs(found.astype(int) - areas)
    assert difference.mean() < 0.8
    assert np.percentile(difference, 99) <= 7
    assert abs((found.astype(int) - areas).mean()) < 0.2
    # It has to beat point sampling clearly where detail would alias.
    points = cv2.resize(photo(), (width, height), interpolation=cv2.INTER_LINEAR)
    if 0.5 < factor < 0.75:
        assert difference.mean() < 0.7 * np.abs(points.astype(int) - areas).mean()


@pytest.mark.parametrize(("reduction", "limit"), [(1, 0.8), (2, 2.5), (4, 3.5), (8, 5)])
def test_what_is_decoded_smaller_is_nearly_the_means_over_areas_of_all(reduction, limit):
    content = encode(photo(), "JPEG", quality=90)
    whole = read_image(content)
    for height in (600 // reduction, 560 // reduction, 450 // reduction, 310 // reduction):
        decoded = decode_image(content, longest_side=height)
        assert decoded.reduction == reduction
        width = round(512 * height / 600)
        factors = height / decoded.pixels.shape[0], width / decoded.pixels.shape[1]
        found = resample(decoded.pixels, height, width, *factors)
        areas = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(found.astype(int) - areas).mean() < limit
        assert abs((found.astype(int) - areas).mean()) < 0.4


@pytest.mark.parametrize("factor", FACTORS)
def test_a_part_equals_that_part_of_the_whole(factor):
    image = photo()[:150, :130]
    whole = resample(image, round(150 * factor), round(130 * factor), factor, factor)
    height, width = round(40 * factor), round(30 * factor)
    found = resample(image[:45, :36], height, width, factor, factor)
    np.testing.assert_array_equal(found, whole[:height, :width])


def test_the_same_size_is_the_same_image():
    np.testing.assert_array_equal(resample(photo(), 300, 200, 1, 1), photo()[:300, :200])
