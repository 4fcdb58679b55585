"""Post-processing on a GPU finds the boxes that it finds on a CPU, though it scores and suppresses in another way."""

from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch

from ovd.model.detection_options import DetectionOptions
from ovd.model.postprocess import postprocess
from ovd.model.similarity import TextClassifier, unit_embeddings
from ovd.model.suppression import best_after_nms
from ovd.structures import Detections, Predictions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Given = TypeVar("Given", Predictions, TextClassifier)

SIZES = torch.tensor([[96, 128], [80, 128], [96, 90], [96, 128]])
POINTS, DIM = 252, 40


def make_predictions(dtype: torch.dtype) -> Predictions:
    """Make predictions for four images, the last of which has no point with a box."""
    generator = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(len(SIZES), POINTS, 2, generator=generator)
    sides = 5 + 60 * torch.rand(len(SIZES), POINTS, 2, generator=generator)
    quality = torch.randn(len(SIZES), POINTS, generator=generator)
    quality[-1] = -torch.inf
    embeddings = torch.randn(len(SIZES), POINTS, DIM, generator=generator).to(dtype)
    return Predictions(embeddings, torch.cat([corners, corners + sides], dim=2), quality)


def make_classifier(num_names: int, seed: int = 1) -> TextClassifier:
    text = unit_embeddings(torch.randn(num_names, DIM, generator=torch.Generator().manual_seed(seed)))
    return TextClassifier(text, torch.arange(num_names), torch.tensor(20.0), torch.tensor(-10.0))


def moved(given: Given, device: str) -> Given:
    changed: dict[str, Any] = {name: value.to(device) for name, value in vars(given).items() if value is not None}
    return replace(given, **changed)


def assert_same(found: Detections, expected: Detections, tolerance: float) -> None:
    """Check that detections are equal, except for the order of scores that differ by rounding alone."""
    assert not any(tensor.is_cuda for tensor in (found.boxes, found.scores, found.classes))
    torch.testing.assert_close(found.scores, expected.scores, rtol=tolerance, atol=tolerance)
    ends = torch.tensor([-1.0])
    steps = torch.cat([ends, expected.scores, ends]).diff().abs()
    is_clear = torch.minimum(steps[:-1], steps[1:]) > 2 * tolerance
    assert torch.equal(found.classes[is_clear], expected.classes[is_clear])
    torch.testing.assert_close(found.boxes[is_clear], expected.boxes[is_clear], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_names", [[1], [80], [1203], [3, 1, 5, 2]], ids=str)
@pytest.mark.parametrize("options", [{}, {"competition": 15.0}, {"max_detections": 3}, {"candidates": 40}], ids=str)
def test_the_boxes_are_those_of_a_cpu(options, num_names, dtype):
    predictions = make_predictions(dtype)
    classifiers = [make_classifier(number, seed) for seed, number in enumerate(num_names)]
    expected, found = (
        postprocess(
            moved(predictions, device),
            [moved(classifier, device) for classifier in classifiers],
            input_sizes=SIZES.to(device),
            original_sizes=2 * SIZES.to(device),
            options=DetectionOptions(**options),
        )
        for device in ("cpu", "cuda")
    )
    assert [len(of_image) for of_image in found] == [len(of_image) for of_image in expected]
    assert len(expected[0]) > 0
    assert len(expected[-1]) == 0
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, 1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("numbers", [(700, 0, 1, 699), (1,), (0, 0)], ids=str)
def test_suppression_on_a_gpu_keeps_the_boxes_that_it_keeps_on_a_cpu(numbers):
    generator = torch.Generator().manual_seed(3)
    images = []
    for number in numbers:
        corners = 100 * torch.rand(number, 2, generator=generator, dtype=torch.float64)
        images.append(torch.cat([corners, corners + 30], dim=1))
    scores = [torch.linspace(1, 0.5, number, dtype=torch.float64) for number in numbers]
    for count in (5, 300):
        expected = best_after_nms(images, scores, 0.5, count, together=False)
        moved_images, moved_scores = ([one.to("cuda") for one in ones] for ones in (images, scores))
        found = best_after_nms(moved_images, moved_scores, 0.5, count, together=True)
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]
