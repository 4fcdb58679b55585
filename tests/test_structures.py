"""The types that parts exchange: targets and points, also of images without boxes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.structures import Points, Targets


def test_nothing_is_known_of_an_empty_image():
    empty = Targets.empty()
    assert empty.boxes.shape == empty.crowd_boxes.shape == (0, 4)
    classes = (empty.classes, empty.negative_classes, empty.not_exhaustive_classes, empty.image_texts)
    assert all(rows.shape == (0,) and rows.dtype == torch.int64 for rows in classes)


def targets_of(num_boxes: int, num_negatives: int) -> Targets:
    boxes, classes = torch.rand(num_boxes, 4), torch.arange(num_boxes)
    return replace(Targets.empty(), boxes=boxes, classes=classes, negative_classes=torch.arange(num_negatives))


@pytest.mark.parametrize("images", [(), ((0, 0),), ((2, 1), (0, 3), (4, 0))])
def test_targets_on_a_device_are_those_of_each_image(images):
    expected = tuple(targets_of(*numbers) for numbers in images)
    found = Targets.to_device(expected, torch.device("cpu"))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(getattr(mine, name), value) for name, value in vars(theirs).items())
        assert all(getattr(mine, name).dtype == value.dtype for name, value in vars(theirs).items())
    assert all(mine.boxes.is_meta for mine in Targets.to_device(expected, torch.device("meta")))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3))
def test_points_in_the_padding_are_those_outside_the_image(sizes):
    centers = [[x, y] for x in (4.0, 12.0, 20.0, 39.5) for y in (4.0, 20.0, 28.0)]
    points = Points(torch.tensor(centers), torch.full((len(centers),), 8.0))
    found = points.in_padding(torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2))
    assert found.tolist() == [[x >= width or y >= height for x, y in centers] for height, width in sizes]
    # Only in an image of at most half the finest stride, here 4 px, is a point outside it scored.
    unscored = points.are_unscored(torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2))
    expected = [[x >= max(width, 5) or y >= max(height, 5) for x, y in centers] for height, width in sizes]
    assert unscored.tolist() == expected
