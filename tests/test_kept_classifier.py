"""An inference keeps the classifier of its latest texts until the texts or the detector change."""

from dataclasses import replace

import pytest
import torch
from small_detector import build_detector

from ovd.inference import ImageBatch, ImageQueries, Inference
from ovd.model.detection_options import DetectionOptions, SecondLookOptions
from ovd.model.detector import Detector
from ovd.model.query_texts import QueryTexts


@pytest.fixture
def detector(untrained_clip) -> Detector:
    return build_detector(untrained_clip, "head").requires_grad_(False)


def inference_of(detector: Detector) -> Inference:
    return Inference(detector, size=64, options=DetectionOptions(), low_precision=False)


def rows(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(3, 256, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_it_is_kept_for_the_same_texts(detector: Detector) -> None:
    inference, text = inference_of(detector), rows(0)
    classifier = inference.classifier(text)
    assert inference.classifier(text) is classifier
    assert inference.classifier(rows(1)) is not classifier
    assert torch.equal(inference.classifier(text).text, text)


@torch.no_grad()
def test_it_is_made_anew_after_a_change(detector: Detector) -> None:
    inference, text = inference_of(detector), rows(0)
    before = inference.classifier(text)
    detector.set_bias(-7.0)
    after = inference.classifier(text)
    assert after is not before
    torch.testing.assert_close(after.bias, torch.tensor(-7.0))
    detector.log_scale.add_(1)
    torch.testing.assert_close(inference.classifier(text).scale, detector.scale)
    detector.threshold.data = torch.tensor(0.5)  # replaces the data, as a move to another device does
    torch.testing.assert_close(inference.classifier(text).bias, detector.bias)
    last = inference.classifier(text)
    text.copy_(rows(1))
    assert inference.classifier(text) is not last


def test_that_of_a_detector_that_learns_is_not_kept(detector: Detector) -> None:
    """The classifier of a detector in training is not kept, since fused optimizers change weights without raising their
    version."""
    inference, text = inference_of(detector.requires_grad_(True)), rows(0)
    assert inference.classifier(text) is not inference.classifier(text)


def test_a_changed_copy_keeps_all_else_and_has_a_classifier_of_its_own(detector: Detector) -> None:
    inference, text = inference_of(detector), rows(0)
    classifier = inference.classifier(text)
    changed = replace(inference, size=96)
    assert (changed.detector, changed.size, changed.options) == (detector, 96, inference.options)
    assert inference.size == 64
    assert changed.classifier(text) is not classifier
    assert inference.classifier(text) is classifier
    with pytest.raises(ValueError, match="go together"):
        replace(inference, options=DetectionOptions(second_look=SecondLookOptions()))


def test_texts_of_inference_mode_are_taken_too(detector: Detector) -> None:
    with torch.inference_mode():
        text = rows(0) + 0
    assert torch.equal(inference_of(detector).classifier(text).text, text)


def random_batch(count: int) -> ImageBatch:
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((count, 2), 64)
    return ImageBatch(images, sizes, sizes)


def test_no_images_have_no_detections(detector: Detector) -> None:
    inference, batch = inference_of(detector.eval()), random_batch(0)
    assert inference.detect(QueryTexts(rows(0)), batch) == ()
    assert inference.detect_each([], batch) == ()


def test_cosines_are_float32s_inside_a_callers_autocast(detector: Detector) -> None:
    inference, batch = inference_of(detector.eval()), random_batch(1)
    groups = [ImageQueries(slice(None), QueryTexts(rows(0)))]
    predictions = inference.predict(batch.images, batch.sizes)
    (expected,) = inference.detections(predictions, batch, groups)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = inference.detections(predictions, batch, groups)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, expected.scores)
