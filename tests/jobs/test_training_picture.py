"""training_images.jpg: the first batch with its labels, drawn once, by a run that starts at step 0."""

from collections.abc import Iterator

import numpy as np
import torch

from ovd.jobs.training_picture import MAX_NAME, _shortened, draw_batch, draw_first_batch
from ovd.structures import Batch, Targets
from ovd.visualize.boxes import GRID_PX


def batch_of(*num_boxes: int, size: tuple[int, int] = (40, 64)) -> Batch:
    targets = []
    for count in num_boxes:
        empty = Targets.empty()
        boxes = torch.tensor([[2.0, 3, 30, 20]]).repeat(count, 1)
        values = {**vars(empty), "boxes": boxes, "classes": torch.arange(count)}
        targets.append(Targets(**values))
    images = torch.full((len(num_boxes), 3, 64, 64), 255, dtype=torch.uint8)
    sizes = torch.tensor([size] * len(num_boxes), dtype=torch.int64).reshape(-1, 2)
    return Batch.without_pairs(images, sizes, tuple(targets), tuple(range(len(num_boxes))))


def test_a_batch_is_drawn_without_its_padding_and_names_are_asked_for_once() -> None:
    asked = []

    def names_of(ids: list[int]) -> list[str]:
        asked.append(ids)
        return ["a" * 200 for _ in ids]

    pictures = draw_batch(batch_of(2, 0, 1), names_of)
    assert asked == [[0, 1]]
    assert [picture.size for picture in pictures] == [(GRID_PX, GRID_PX * 40 // 64)] * 3  # small pictures are enlarged
    assert [bool(np.asarray(picture).min() < 128) for picture in pictures] == [True, False, True]  # boxes are dark
    assert _shortened("a_b" * 40) == ("a b" * 40)[: MAX_NAME - 3] + "..."
    assert _shortened("a_b") == "a b"


def test_the_first_batch_with_an_image_is_drawn_once(tmp_path) -> None:
    drawn = []

    def batches_from(start: int) -> Iterator[Batch]:
        yield from (batch_of(), batch_of(1), batch_of(3))

    def names_of(ids: list[int]) -> list[str]:
        drawn.append(len(ids))
        return ["name"] * len(ids)

    batches = draw_first_batch(batches_from, tmp_path, names_of)
    assert len(list(batches(0))) == 3
    assert len(list(batches(0))) == 3
    assert drawn == [1]
    later = draw_first_batch(batches_from, tmp_path, names_of)
    assert len(list(later(7))) == 3
    assert drawn == [1]
