"""Suppression keeps the boxes that torchvision's `nms` keeps, in one image and in several at once."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from ovd.model import suppression
from ovd.model.suppression import best_after_nms


def random_boxes(count: int, side: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 100
    sides = side * (0.5 + torch.rand(count, 2, generator=generator, dtype=torch.float64))
    return torch.cat([corners, corners + sides], dim=1)


def falling_scores(boxes: Tensor) -> Tensor:
    return torch.linspace(1, 0.5, len(boxes), dtype=torch.float64)


def assert_equals_nms(images: list[Tensor], iou: float, count: int) -> None:
    scores = [falling_scores(boxes) for boxes in images]
    expected = [nms(boxes, of_image, iou)[:count].tolist() for boxes, of_image in zip(images, scores, strict=True)]
    for together in (False, True):
        kept = best_after_nms(images, scores, iou, count, together=together)
        assert [rows.tolist() for rows in kept] == expected


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
@pytest.mark.parametrize("side", [1.0, 20.0, 300.0])
@pytest.mark.parametrize("numbers", [(400,), (400, 400), (3, 0, 250, 60)], ids=str)
def test_the_best_kept_are_those_of_all_boxes(numbers: tuple[int, ...], side: float, count: int) -> None:
    """The best kept boxes are those of NMS on all boxes, whether few overlap and the first ones suffice, or almost all
    do."""
    images = [random_boxes(number, side, seed) for seed, number in enumerate(numbers)]
    for iou in (0.1, 0.5, 0.9):
        assert_equals_nms(images, iou, count)


def test_no_boxes_at_all() -> None:
    assert_equals_nms([torch.zeros(0, 4, dtype=torch.float64)] * 3, 0.5, 10)


def test_a_chain_of_overlaps_is_decided_to_its_end() -> None:
    """In a row of boxes, each of which overlaps its neighbors, every other one is kept, however long the row is."""
    left = 4.0 * torch.arange(101, dtype=torch.float64)
    boxes = torch.stack([left, torch.zeros(101), left + 10, torch.full((101,), 10.0)], dim=1)
    other = random_boxes(30, 20.0, seed=5)
    scores = [falling_scores(boxes), falling_scores(other)]
    (rows, _) = best_after_nms([boxes, other], scores, 0.4, 1000, together=True)
    assert rows.tolist() == list(range(0, 101, 2))


def test_boxes_without_area_are_kept() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [0, 0, 0, 0]], dtype=torch.float64)
    assert_equals_nms([boxes, boxes[:2]], 0.5, 10)


def test_few_pairs_of_boxes_in_memory_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "MAX_BOX_PAIRS", 100**2)
    assert_equals_nms([random_boxes(80, 30.0, seed) for seed in range(5)], 0.5, 50)
