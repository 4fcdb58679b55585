"""Overlaps of many groups of boxes, against a loop over the groups."""

import numpy as np
import pytest

from ovd.data import box_arrays
from ovd.data.box_arrays import overlaps


@pytest.mark.parametrize("min_iou", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overlaps_equal_a_loop_over_groups(min_iou, dtype):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, (60, 2))
    corners = np.concatenate([first, first + rng.integers(6, 9, (60, 2))], axis=1).astype(dtype)
    groups, scores = rng.integers(0, 5, 60), rng.choice([0.1, 0.5, 0.9], 60)
    expected = []
    for group in range(5):
        own = np.flatnonzero(groups[20:] == group)
        for row in own[np.argsort(-scores[20:][own], kind="stable")].tolist():
            for true_row in np.flatnonzero(groups[:20] == group).tolist():
                left, top, right, bottom = corners[20 + row].tolist()
                true_left, true_top, true_right, true_bottom = corners[true_row].tolist()
                width = max(0, min(right, true_right) - max(left, true_left))
                height = max(0, min(bottom, true_bottom) - max(top, true_top))
                areas = (right - left) * (bottom - top) + (true_right - true_left) * (true_bottom - true_top)
                iou = width * height / (areas - width * height)
                if iou >= min_iou:
                    expected.append((row, true_row, iou))
    assert len(expected) > 5
    found = overlaps(groups[:20], corners[:20], groups[20:], corners[20:], scores[20:], min_iou=min_iou)
    for part, wanted in zip(found, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(part, wanted, rtol=1e-6)


def test_boxes_are_compared_a_few_at_a_time_with_the_same_outcome(monkeypatch):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, (70, 2)).astype(float)
    corners = np.concatenate([first, first + 9], axis=1)
    groups, scores = rng.integers(0, 4, 70), rng.choice([0.1, 0.5, 0.9], 70)
    arguments = (groups[:30], corners[:30], groups[30:], corners[30:], scores[30:])
    expected = overlaps(*arguments, min_iou=0.5)
    assert len(expected[0]) > 20
    for number in (1, 3, 50):
        monkeypatch.setattr(box_arrays, "_MAX_PAIRS_PER_CHUNK", number)
        for found, wanted in zip(overlaps(*arguments, min_iou=0.5), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    none = overlaps(*(array[:0] for array in arguments), min_iou=0.5)
    assert [len(found) for found in none] == [0, 0, 0]
