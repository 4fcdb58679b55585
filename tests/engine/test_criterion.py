"""The losses of a step depend on the config's settings and on its number of parts, and the first bias on the images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_detector import build_detector
from torch.nn import functional as F

from ovd.config.training import PairsConfig, TrainSection
from ovd.engine.step import BatchPart, Criterion, Matching, set_initial_bias
from ovd.engine.step_texts import StepTexts
from ovd.model.assign import assign_fcos
from ovd.model.fcos_head import make_points
from ovd.model.image_labels import image_label_loss
from ovd.model.similarity import INITIAL_PROBABILITY, TextClassifier
from ovd.model.start_distillation import start_distillation_losses, unannotated_points
from ovd.precision import Compute
from ovd.structures import Batch, Points, Predictions, Targets

FLOAT32 = Compute(torch.device("cpu"), low_precision=False)
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
    return BatchPart(batch, texts, predictions, points, classifier, FLOAT32)


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


def test_divisors_from_the_predictions_of_parts_make_a_mean_of_the_parts_losses(batch, points):
    criterion = Criterion(TrainSection(steps=1, assignment="task_aligned", atss_steps=0), None)
    part = part_of(batch, points)
    alone = criterion.match_by_predictions(part, 0)
    assert alone.normalizers.tolist() == alone.matched_points.normalizers().tolist()
    assert (alone.normalizers > 0).all()
    one_of_three = criterion.match_by_predictions(replace(part, num_parts=3), 0)
    assert one_of_three.normalizers.tolist() == (3 * alone.normalizers).tolist()


def test_losses_that_keep_to_the_start_have_their_weight_and_are_averaged_over_the_parts(batch, untrained_clip):
    start = build_detector(untrained_clip, "head").eval()
    points = start.points(batch.images)
    with torch.no_grad():
        before = start(batch.images)
    embeddings = before.embeddings + torch.randn(before.embeddings.shape, generator=torch.Generator().manual_seed(0))
    changed = Predictions(embeddings, before.boxes + 3, before.quality + 1)
    assignment = assign_fcos(points, batch.targets, sizes=batch.sizes)
    expected = start_distillation_losses(changed, before, unannotated_points(assignment))
    assert all(loss > 0 for loss in expected.values())
    criterion = Criterion(TrainSection(steps=1, start_distillation=0.6), None, start=start)
    for num_parts in (1, 3):
        part = replace(part_of(batch, points), predictions=changed, num_parts=num_parts)
        found = criterion.start_distillation(part, assignment)
        weighted = {name: 0.6 * loss.item() / num_parts for name, loss in expected.items()}
        assert {name: loss.item() for name, loss in found.items()} == pytest.approx(weighted)


def test_the_initial_bias_counts_the_points_inside_the_images_alone(untrained_clip):
    detector = build_detector(untrained_clip, "pyramid", "head").train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 64, 128), generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[64, 48], [32, 128]])
    images[0, :, :, 48:] = images[1, :, 32:] = 0
    text = F.normalize(torch.randn(5, detector.backbone.dense(torch.zeros(1, 3, 64, 64)).shape[1], generator=generator))
    set_initial_bias(detector, Batch.without_pairs(images, sizes, (ONE_BOX,) * 2, (1, 2)), text, FLOAT32)
    with torch.no_grad():
        embeddings, centers = detector(images).embeddings, detector.points(images).centers
    probabilities = (detector.scale * F.normalize(embeddings, dim=2) @ text.T + detector.bias).sigmoid().mean(dim=2)
    inside = [
        probabilities[image, point].item()
        for image, (height, width) in enumerate(sizes.tolist())
        for point, (x, y) in enumerate(centers.tolist())
        if x < width and y < height
    ]
    assert sum(inside) / len(inside) == pytest.approx(INITIAL_PROBABILITY, rel=2e-3)
    assert probabilities.mean().item() != pytest.approx(INITIAL_PROBABILITY, rel=2e-2)
