"""Images of a batch that are detected together, each with its own queries, have the boxes that they have alone."""

import pytest
import torch
from small_detector import build_detector
from torch import Tensor

from ovd import inference as module
from ovd.experts.inference import Expert, ExpertInference
from ovd.experts.names import ExpertNames
from ovd.inference import ImageBatch, ImageQueries, Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import ScoreEnsemble
from ovd.model.postprocess import postprocess
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.structures import Detections

NUM_QUERIES = (3, 1, 0, 5, 2)


def rows(count: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 256, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(NUM_QUERIES), 3, 64, 96), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[64, 96], [64, 80], [50, 96], [64, 96], [33, 96]])
    return ImageBatch(images, sizes, 2 * sizes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images of each post-processing."""
    calls: list[int] = []

    def counted(predictions, *args, **kwargs) -> tuple[Detections, ...]:
        calls.append(len(predictions.boxes))
        return postprocess(predictions, *args, **kwargs)

    monkeypatch.setattr(module, "postprocess", counted)
    return calls


@pytest.mark.parametrize("number", [1, 4])
def test_each_image_needs_its_queries(number, untrained_clip):
    detector = build_detector(untrained_clip, "head").requires_grad_(False).eval()
    inference = Inference(detector, size=96, options=DetectionOptions(), low_precision=False)
    images, sizes = torch.zeros(3, 3, 96, 96, dtype=torch.uint8), torch.full((3, 2), 96)
    with pytest.raises(ValueError, match=f"for {number} images? are given, but the batch has 3; give one QueryTexts"):
        inference.detect_each([QueryTexts(rows(2, 0))] * number, ImageBatch(images, sizes, sizes))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"competition": 20.0}, {"one_name_per_place": 0.5}, {"score_threshold": 0.03}, {"max_detections": 4}],
    ids=str,
)
def test_each_image_has_the_boxes_that_it_has_alone(options, calibrated, batch, calls, untrained_clip, monkeypatch):
    detection_options = DetectionOptions(**options)
    score_map = ScoreMap(0.7, 0.2, -0.3, -1.0)
    calibration = ScoreCalibration(0.2, score_map, 0.3, detection_options, rows(4, 9)) if calibrated else None
    detector = build_detector(untrained_clip, "head").requires_grad_(False).eval()
    inference = Inference(detector, size=96, options=detection_options, low_precision=False, calibration=calibration)
    queries = [QueryTexts(rows(count, seed)) for seed, count in enumerate(NUM_QUERIES)]
    together = inference.detect_each(queries, batch)
    assert calls == [2, 2], "the image without queries is left out"
    monkeypatch.setattr(module, "MAX_PAIRS_TOGETHER", 0)
    monkeypatch.setattr(module, "MAX_PAIRS_TOGETHER_ON_GPU", 0)
    alone = inference.detect_each(queries, batch)
    assert calls == [2, 2, 1, 1, 1, 1]
    for found, expected, count in zip(together, alone, NUM_QUERIES, strict=True):
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.classes, expected.classes)
        assert (len(found) > 0) == (count > 0)
        assert set(found.classes.tolist()) <= set(range(count))


@pytest.mark.parametrize("calibrated", [False, True])
def test_each_image_is_scored_with_its_own_ensemble_and_without_a_map(calibrated, batch, untrained_clip) -> None:
    detector = build_detector(untrained_clip, "head", keeps_dense=True).requires_grad_(False).eval()
    options = DetectionOptions()

    def inference(score_map: ScoreMap) -> Inference:
        calibration = ScoreCalibration(0.2, score_map, 0.3, options, rows(4, 9)) if calibrated else None
        return Inference(detector, size=96, options=options, low_precision=False, calibration=calibration)

    ensembles = [ScoreEnsemble(torch.full((3,), weight), clip_scale=9.0) for weight in (0.0, 0.3, 0.6, 0.9, 1.0)]
    queries = [QueryTexts(rows(3, 1), ensemble) for ensemble in ensembles]
    found = inference(ScoreMap(0.7, 0.2, -0.3, -1.0)).detect_each(queries, batch)
    unmapped = inference(ScoreMap(1.0, 1.0, 0.0, 0.0))
    predictions = unmapped.predict(batch.images, batch.sizes)
    for row, own in enumerate(queries):
        image = slice(row, row + 1)
        group = ImageQueries(slice(0, 1), own)
        (expected,) = unmapped.detections(predictions.of_images(image), batch.of_images(image), [group])
        torch.testing.assert_close(found[row].scores, expected.scores)
        assert torch.equal(found[row].classes, expected.classes)


def test_many_queries_are_detected_image_by_image(batch, calls, untrained_clip, monkeypatch) -> None:
    detector = build_detector(untrained_clip, "head").requires_grad_(False).eval()
    inference = Inference(detector, size=96, options=DetectionOptions(), low_precision=False)
    num_points = len(detector.points(batch.images).centers)
    monkeypatch.setattr(module, "MAX_PAIRS_TOGETHER", 2 * num_points * 3)
    monkeypatch.setattr(module, "MAX_PAIRS_TOGETHER_ON_GPU", 2 * num_points * 3)
    inference.detect_each([QueryTexts(rows(3, seed)) for seed in range(5)], batch)
    assert calls == [2, 2, 1]


@pytest.mark.parametrize("calibrated", [False, True])
def test_with_an_expert_the_base_detector_has_exactly_the_boxes_that_it_has_alone(
    calibrated, batch, calls, untrained_clip
) -> None:
    """Both detectors post-process images together, and an image without queries for one of them is left out there."""
    calibration = ScoreCalibration(0.2, ScoreMap(0.7, 0.2, -0.3, -1.0), 0.3, DetectionOptions(), rows(4, 9))
    detector = build_detector(untrained_clip, "head").requires_grad_(False).eval()
    base = Inference(
        detector,
        size=96,
        options=DetectionOptions(),
        low_precision=False,
        calibration=calibration if calibrated else None,
    )
    of_base, of_expert = (rows(count, seed) for seed, count in enumerate((6, 2)))
    names = ExpertNames(("one", "other"), of_expert, of_base, 1.0)
    inference = ExpertInference(base, [Expert("a", names, base, None)], same_place="both")
    own = [of_base[:3], of_base[2:4], of_base[:0], of_base[4:], of_base[1:2]]
    learned = [of_expert[:1], of_expert[:0], of_expert[1:], of_expert, of_expert[:1]]
    queries = [QueryTexts(torch.cat(texts)) for texts in zip(own, learned, strict=True)]
    together = inference.detect_each(queries, batch)
    assert calls == [2, 2, 1, 3]
    alone = base.detect_each([QueryTexts(texts) for texts in own], batch)
    of_expert_alone = base.detect_each([QueryTexts(texts) for texts in learned], batch)
    for row, found in enumerate(together):
        is_own = found.classes < len(own[row])
        for part, expected, first in ((is_own, alone[row], 0), (~is_own, of_expert_alone[row], len(own[row]))):
            assert torch.equal(found.boxes[part], expected.boxes[: int(part.sum())])
            assert torch.equal(found.scores[part], expected.scores[: int(part.sum())])
            assert torch.equal(found.classes[part] - first, expected.classes[: int(part.sum())])
        assert len(found) == min(1000, len(alone[row]) + len(of_expert_alone[row]))
        assert len(found) > 0
