import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.structures import Points, Targets


def test_nothing_is_known_of_an_empty_image():
    empty = Targets.empty()
    assert empty.boxes.shape == empty.crowd_boxes.shape == (0, 4)
    classes = (empty.classes, empty.negative_classes, empty.not_exhaustive_classes, empty.image_texts)
    assert all(rows.shape == (0,) and rows.dtype == torch.int64 for rows in classes)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3))
def test_points_in_the_padding_are_those_outside_the_image(sizes):
    centers = [[x, y] for x in (4.0, 12.0, 20.0, 39.5) for y in (4.0, 20.0, 28.0)]
    points = Points(torch.tensor(centers), torch.full((len(centers),), 8.0))
    found = points.in_padding(torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2))
    assert found.tolist() == [[x >= width or y >= height for x, y in centers] for height, width in sizes]
