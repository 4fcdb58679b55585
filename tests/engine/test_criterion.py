"""The losses of a step depend on the config's settings for pairs and for the first steps of the assignment."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ovd.config.training import PairsConfig, TrainSection
from ovd.engine.step import BatchPart, Criterion, Matching
from ovd.engine.step_texts import StepTexts
from ovd.model.assign import assign_fcos
from ovd.model.fcos_head import make_points
from ovd.model.image_labels import image_label_loss
from ovd.model.similarity import TextClassifier
from ovd.precision import Compute
from ovd.structures import Batch, Points, Predictions, Targets

ONE_BOX = replace(Targets.empty(), boxes=torch.tensor([[4.0, 4, 40, 44]]), classes=torch.tensor([0]))
OF_A_PAIR = replace(ONE_BOX, classes=torch.tensor([3]), image_texts=torch.tensor([3]))


@pytest.fixture
def points() -> Points:
    return make_points((64, 64), [8, 16], torch.device("cpu"))


@pytest.fixture
def batch() -> Batch:
    """Batch of an annotated image and a pair with the same box."""
    images, sizes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]] * 2)
    return Batch(images, sizes, (ONE_BOX, OF_A_PAIR), (1, 2), torch.tensor([False, True]))


def pairs_config(**options) -> PairsConfig:
    return PairsConfig(labels=Path("labels"), **options)


@pytest.mark.parametrize(("box_loss", "images"), [(False, {0}), (True, {0, 1})])
def test_boxes_of_pairs_count_in_the_box_loss_if_they_are_to(box_loss, images, batch, points):
    assignment = assign_fcos(points, batch.targets, sizes=batch.sizes)
    matched = Criterion(TrainSection(steps=1), pairs_config(box_loss=box_loss)).match(assignment, batch, points)
    assert set((matched.box_loss_rows // len(points.centers)).tolist()) == images
    assert set((matched.rows // len(points.centers)).tolist()) == {0, 1}


def test_the_first_steps_of_a_task_aligned_assignment_are_atss():
    criterion = Criterion(TrainSection(steps=9, assignment="task_aligned", atss_steps=3), None)
    assert [criterion.assignment_rule(step) for step in (0, 2, 3, 8)] == [
        "atss",
        "atss",
        "task_aligned",
        "task_aligned",
    ]
    assert Criterion(TrainSection(steps=9, assignment="fcos", atss_steps=3), None).assignment_rule(0) == "fcos"


def part_of(batch: Batch, points: Points) -> BatchPart:
    """Make a part with random predictions and two texts, one of a class and one of the pair."""
    generator = torch.Generator().manual_seed(0)
    count = len(points.centers)
    predictions = Predictions(
        embeddings=torch.randn(2, count, 6, generator=generator),
        boxes=torch.tensor([[2.0, 2, 30, 30]]).repeat(2, count, 1),
        quality=torch.randn(2, count, generator=generator),
    )
    ids, rows = torch.tensor([0, 3]), F.normalize(torch.randn(2, 6, generator=generator), dim=1)
    mask = torch.ones(2, 2, dtype=torch.bool)
    texts = StepTexts(ids, rows, mask, mask, of_pairs=torch.tensor([False, True]))
    classifier = TextClassifier(rows, ids, torch.tensor(5.0), torch.tensor(-1.0))
    return BatchPart(batch, texts, predictions, points, classifier, Compute(torch.device("cpu"), low_precision=False))


def test_the_image_label_loss_has_its_weight_and_is_the_mean_over_all_pairs(batch, points):
    criterion = Criterion(TrainSection(steps=1), pairs_config(use="image_labels", image_label_weight=0.3))
    part, assignment = part_of(batch, points), assign_fcos(points, batch.targets, sizes=batch.sizes)
    matched = criterion.match(assignment, batch, points)
    matching = Matching(assignment, matched, matched.normalizers())
    whole = image_label_loss(part.predictions, batch, part.classifier.select(part.texts.of_pairs), points).item()
    assert whole > 0
    assert criterion.losses(part, matching, num_pairs=4)["image"].item() == pytest.approx(0.3 * whole / 4)
    assert criterion.losses(part, matching)["image"].item() == pytest.approx(0.3 * whole)
    on_boxes = Criterion(TrainSection(steps=1), pairs_config(image_label_weight=0.3))
    assert list(on_boxes.losses(part, matching, num_pairs=4)) == ["class", "box", "quality"]
