"""Images of at most half the finest stride in height or width, in which no point lies, are detected in all the same."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from small_detector import build_detector

from ovd.boxes import has_area
from ovd.choices import AssignmentRule
from ovd.inference import ImageBatch, Inference
from ovd.model.assign import assign
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.structures import Targets

QUERIES = QueryTexts(torch.eye(3, 256))


@pytest.fixture
def inference(untrained_clip) -> Inference:
    detector = build_detector(untrained_clip, "head").requires_grad_(False).eval()
    return Inference(detector, size=192, options=DetectionOptions(), low_precision=False)


@pytest.mark.parametrize("shape", [(10, 430), (430, 10), (1, 192), (192, 4), (192, 5), (1, 5000), (5000, 1)])
def test_a_thin_image_has_boxes_inside_it(inference, shape) -> None:
    height, width = shape
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = inference.image(QUERIES, image)
    assert len(found) > 10
    assert has_area(found.boxes).all()
    assert found.boxes.amin() >= 0
    assert (found.boxes <= torch.tensor([width, height] * 2)).all()


def test_a_thin_image_has_the_boxes_in_a_batch_that_it_has_alone(inference) -> None:
    images = torch.randint(0, 256, (4, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[3, 90], [64, 96], [60, 4], [2, 1]])
    batch = ImageBatch(images, sizes, 3 * sizes)
    for row, together in enumerate(inference.detect(QUERIES, batch)):
        (alone,) = inference.detect(QUERIES, batch.of_images(slice(row, row + 1)))
        assert len(together) == len(alone) > 0
        torch.testing.assert_close(together.boxes, alone.boxes)
        torch.testing.assert_close(together.scores, alone.scores)
        assert torch.equal(together.classes, alone.classes)


@pytest.mark.parametrize("rule", get_args(AssignmentRule))
def test_training_ignores_all_points_of_a_thin_image(inference, rule) -> None:
    detector = inference.detector
    images, sizes = torch.zeros(1, 3, 32, 96, dtype=torch.uint8), torch.tensor([[4, 96]])
    targets = replace(Targets.empty(), boxes=torch.tensor([[10.0, 0, 40, 4]]), classes=torch.tensor([0]))
    classifier = detector.classifier(QUERIES.text)
    assignment = assign(
        rule, detector.points(images), (targets,), sizes=sizes, predictions=detector(images), classifier=classifier
    )
    assert assignment is not None
    assert (assignment.matched == -1).all()
    assert assignment.ignored.all()
