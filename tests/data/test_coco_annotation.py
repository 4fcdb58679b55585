"""Rounding of boxes in annotations in COCO's form."""

import json

import numpy as np
import pytest

from ovd.data.coco_annotation import coco_annotation


def test_a_record_has_cocos_fields_in_cocos_order_and_further_ones_last():
    record = coco_annotation(3, 2, 1, (10, 20, 30.004, 50.006), score=0.5)
    assert json.dumps(record) == (
        '{"id": 3, "image_id": 2, "category_id": 1, "bbox": [10, 20, 20.0, 30.01], "area": 600.2, "iscrowd": 0, '
        '"score": 0.5}'
    )


def test_area_and_crowd_are_those_that_are_given():
    record = coco_annotation(1, 1, 1, (0.0, 0.0, 4.0, 4.0), area_px=7.123, crowd=1)
    assert (record["area"], record["iscrowd"]) == (7.12, 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_box_keeps_inside_its_image_and_above_a_pixel_and_its_digits_are_few(seed):
    rng = np.random.default_rng(seed)
    height, width = 480, 640
    for _ in range(300):
        x0, y0 = rng.uniform(0, [width - 1, height - 1]).astype(np.float32).tolist()
        x1, y1 = (float(rng.uniform(low + 1, high)) for low, high in ((x0, width), (y0, height)))
        left, top, w, h = record = coco_annotation(1, 1, 1, (x0, y0, x1, y1))["bbox"]
        assert w >= 1
        assert h >= 1
        assert left + w <= width + 1e-9
        assert top + h <= height + 1e-9
        np.testing.assert_allclose([left, top, left + w, top + h], [x0, y0, x1, y1], atol=0.005 + 1e-9)
        assert all(number == float(f"{number:.2f}") for number in record)


def test_a_box_of_a_pixel_stays_one_wherever_it_begins():
    """A corner at 15.005 is above it in float32, and the other at 16.005 below: 15.01 and 16 are 0.99 apart."""
    for start in np.arange(0, 64, 0.005).tolist():
        corners = np.array([start, start, start + 1, start + 1.004], np.float32).tolist()
        left, top, w, h = coco_annotation(1, 1, 1, corners)["bbox"]
        assert min(w, h) >= 1
        assert min(left, top) >= 0
        assert max(left + w - corners[2], top + h - corners[3]) <= 0.005 + 1e-5
        assert max(corners[0] - left, corners[1] - top) < 0.01
