"""Clipping, rescaling and overlaps of boxes against torchvision, for images that are not square."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from ovd.boxes import clip_boxes, giou_loss, rescale_boxes, side_distances

coordinate = st.floats(-500, 1500, width=32)
boxes_of_any_kind = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=5).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
)
sides = st.integers(1, 2000)


@settings(deadline=None)
@given(boxes=boxes_of_any_kind, height=sides, width=sides)
def test_clip_equals_torchvision(boxes: torch.Tensor, height: int, width: int) -> None:
    expected = clip_boxes_to_image(boxes, (height, width))
    assert torch.equal(clip_boxes(boxes, torch.tensor([height, width])), expected)


def test_clip_on_a_wide_image() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 300.0, 300.0]])
    assert clip_boxes(boxes, torch.tensor([100, 200])).tolist() == [[0, 0, 200, 100]]


def test_rescale_has_a_factor_per_axis() -> None:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 30.0]])
    rescaled = rescale_boxes(boxes, torch.tensor([100, 200]), torch.tensor([50, 600]))
    assert rescaled.tolist() == [[30, 5, 60, 15]]


@settings(deadline=None)
@given(height=sides, width=sides, to_height=sides, to_width=sides)
def test_rescale_maps_image_onto_image(height: int, width: int, to_height: int, to_width: int) -> None:
    whole = torch.tensor([[0.0, 0.0, width, height]])
    rescaled = rescale_boxes(whole, torch.tensor([height, width]), torch.tensor([to_height, to_width]))
    torch.testing.assert_close(rescaled, torch.tensor([[0.0, 0.0, to_width, to_height]]))


@pytest.mark.parametrize("sides", [(1007, 16885), (1333, 13003)])
def test_rescaled_boxes_do_not_leave_a_very_long_image(sides: tuple[int, int]) -> None:
    side, to = sides
    x = torch.arange(side + 1, dtype=torch.float32)
    boxes = torch.stack([x, x, x, x], dim=1)
    rescaled = rescale_boxes(boxes, torch.tensor([side, side]), torch.tensor([to, to]))
    assert rescaled.max() == to
    torch.testing.assert_close(rescaled.double(), boxes.double() * to / side, rtol=2**-22, atol=0)


def test_side_distances() -> None:
    points = torch.tensor([[5.0, 6.0], [50.0, 6.0]])
    boxes = torch.tensor([[1.0, 2.0, 11.0, 32.0]])
    assert side_distances(points, boxes).tolist() == [[4, 4, 6, 26], [49, 4, -39, 26]]
    assert side_distances(points[:, None], boxes).shape == (2, 1, 4)
    assert side_distances(points[:, None], boxes[:0]).shape == (2, 0, 4)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), num_boxes=st.integers(0, 300), spread=st.sampled_from([1.0, 30.0, 300.0]))
def test_giou_loss_and_its_gradients_have_torchvisions_bits(seed: int, num_boxes: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, true_boxes = 100 * torch.rand(2, num_boxes, 4, generator=generator)
    true_boxes[:, 2:] += true_boxes[:, :2]
    boxes[:, 2:] = boxes[:, :2] + spread * torch.randn(num_boxes, 2, generator=generator)  # some are turned inside out
    boxes[: num_boxes // 4] = true_boxes[: num_boxes // 4]
    weights = torch.rand(num_boxes, generator=generator)
    found = []
    for loss_of in (generalized_box_iou_loss, giou_loss):
        both = boxes.clone().requires_grad_(), true_boxes.clone().requires_grad_()
        loss = loss_of(*both)
        found.append((loss, *torch.autograd.grad((loss * weights).sum(), both)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
