"""The exported graph against the detector's own inference: every family of backbones, and every option of scores."""

from pathlib import Path

import pytest
import torch
from small_backbones import FAMILIES
from small_export import (
    OPTIONS,
    both_forms,
    calibration_of,
    detections_of_both,
    dim_of,
    noise_of,
    num_without_equal,
    random_detector,
    unit_rows,
)

from ovd.export.graph import DetectionGraph, probabilities
from ovd.inference import ImageBatch, Inference
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreMap
from ovd.onnx.session import DetectionSession

QUICK = "vit"


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> tuple[Inference, DetectionSession]:
    return both_forms(random_detector(QUICK), tmp_path_factory.mktemp("vit") / "model.onnx", OPTIONS)


def check_equal(both: tuple[Inference, DetectionSession], rounds: int) -> None:
    inference, session = both
    divisor, dim = inference.detector.size_divisor, dim_of(inference.detector)
    shapes = [(2, 2, 3, 7), (1, 4, 2, 1), (3, 1, 1, 40), (1, 3, 5, 12)]
    num_found = 0
    for seed in range(rounds):
        batch, rows, columns, names = shapes[seed % len(shapes)]
        images, sizes = noise_of(batch, rows * divisor, columns * divisor, seed)
        for own, exported in detections_of_both(inference, session, images, sizes, unit_rows(names, dim, seed)):
            num_found += len(own.scores)
            assert len(own.scores) == len(exported.scores)
            assert num_without_equal(own, exported) == 0
            assert (exported.scores[1:] <= exported.scores[:-1]).all()
    assert num_found > 10 * rounds


def test_detections_equal_the_detectors_own_for_images_and_vocabularies_of_any_size(vit):
    check_equal(vit, rounds=8)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != QUICK])
def test_every_family_of_backbones_is_exported(family, tmp_path):
    check_equal(both_forms(random_detector(family), tmp_path / "model.onnx", OPTIONS), rounds=8)


def test_a_task_aligned_head_is_exported_for_images_of_any_size(tmp_path):
    check_equal(both_forms(random_detector(QUICK, task_aligned=True), tmp_path / "model.onnx", OPTIONS), rounds=4)


def test_a_vocabulary_of_1203_names(vit):
    inference, session = vit
    images, sizes = noise_of(1, 64, 96)
    (both,) = detections_of_both(inference, session, images, sizes, unit_rows(1203, dim_of(inference.detector)))
    assert len(both[0].scores) == OPTIONS.max_detections
    assert num_without_equal(*both) == 0


def test_an_image_in_a_batch_is_detected_in_as_if_it_were_alone(vit):
    _, session = vit
    images, sizes = noise_of(2, 64, 96)
    text = unit_rows(5, session.usage.dim).numpy()
    last = images.permute(0, 2, 3, 1).contiguous().numpy()
    together = session(last, sizes.numpy(), text)
    assert len(together) == 2
    for row, expected in enumerate(together):
        (alone,) = session(last[row : row + 1], sizes[row : row + 1].numpy(), text)
        assert len(alone.scores) == len(expected.scores) > 0
        torch.testing.assert_close(torch.tensor(alone.boxes), torch.tensor(expected.boxes), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(alone.scores), torch.tensor(expected.scores), atol=1e-5, rtol=1e-4)


def test_thin_images_without_a_point_inside_are_detected_in(vit):
    inference, session = vit
    images, _ = noise_of(2, 64, 96)
    sizes = torch.tensor([[3, 90], [64, 2]])
    text = unit_rows(3, dim_of(inference.detector))
    for own, exported in detections_of_both(inference, session, images, sizes, text):
        assert len(own.scores) == len(exported.scores) > 0
        assert num_without_equal(own, exported) == 0


OPTION_SETS = {
    "one name per place": OPTIONS.model_copy(update={"one_name_per_place": 0.5}),
    "absolute scores above a threshold": OPTIONS.model_copy(update={"competition": 0.0, "score_threshold": 0.1}),
    "nothing above the threshold": OPTIONS.model_copy(update={"score_threshold": 0.999}),
    "all candidates": OPTIONS.model_copy(update={"candidates": 10**6, "max_detections": 10**6}),
}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", OPTION_SETS)
def test_the_graph_has_the_options_of_post_processing(name, calibrated):
    """The graph applies all options of post-processing; it runs in torch here, since its exported form is tested
    above."""
    detector, options = random_detector(QUICK), OPTION_SETS[name]
    dim = dim_of(detector)
    calibration = calibration_of(dim, options) if calibrated else None
    inference = Inference(detector, size=96, options=options, low_precision=False, calibration=calibration)
    images, sizes = noise_of(2, 64, 96)
    text = unit_rows(6, dim)
    with torch.no_grad():
        boxes, scores, classes, counts = DetectionGraph(detector, options, calibration)(
            images.permute(0, 2, 3, 1), sizes, text
        )
    for row, own in enumerate(inference.detect(QueryTexts(text), ImageBatch(images, sizes, sizes))):
        count = int(counts[row])
        assert count == len(own.scores)
        assert (count == 0) == (name == "nothing above the threshold")
        torch.testing.assert_close(scores[row, :count], own.scores, atol=1e-6, rtol=1e-5)
        # Scores that differ by rounding alone may be in another order, so each detection needs an equal in the other.
        same = torch.isclose(boxes[row, :count, None], own.boxes[None], rtol=1.3e-6, atol=1e-5).all(dim=2)
        same &= torch.isclose(scores[row, :count, None], own.scores[None], atol=1e-6, rtol=1e-5)
        same &= classes[row, :count, None] == own.classes[None]
        assert same.any(dim=0).all()
        assert same.any(dim=1).all()
        assert not scores[row, count:].any()
        assert not boxes[row, count:].any()
        assert (classes[row, count:] == -1).all()


@pytest.mark.parametrize("exported", [False, True])
def test_a_threshold_is_of_probabilities_where_the_detector_is_calibrated(exported):
    detector, images, sizes = random_detector(QUICK), *noise_of(1, 64, 96)
    dim = dim_of(detector)
    text = unit_rows(6, dim)

    def found(threshold: float) -> torch.Tensor:
        options = OPTIONS.model_copy(
            update={"score_threshold": threshold, "candidates": 10**6, "max_detections": 10**6}
        )
        calibration = calibration_of(dim, options)
        if exported:
            graph = DetectionGraph(detector, options, calibration)
            with torch.no_grad():
                _, scores, _, counts = graph(images.permute(0, 2, 3, 1), sizes, text)
            return scores[0, : int(counts[0])]
        inference = Inference(detector, size=96, options=options, low_precision=False, calibration=calibration)
        return inference.detect(QueryTexts(text), ImageBatch(images, sizes, sizes))[0].scores

    everything = found(0.0)
    for threshold in everything.quantile(torch.tensor([0.2, 0.6, 0.9])).tolist():
        expected = everything[everything > threshold]
        assert 0 < len(expected) < len(everything)
        torch.testing.assert_close(found(threshold), expected)


@pytest.mark.parametrize("distance", [0.0, -2.0])
def test_probabilities_in_float32_are_those_of_the_map(distance):
    score_map = ScoreMap(1.3, 0.4, -0.2, distance)
    scores = torch.cat([torch.linspace(0, 1, 1001), torch.tensor([1e-7, 1 - 1e-6])])
    nearness = torch.linspace(0, 1, len(scores))
    torch.testing.assert_close(
        probabilities(score_map, scores[None], nearness[None])[0], score_map(scores, nearness), atol=1e-4, rtol=1e-4
    )


def test_a_file_that_is_no_detector_of_ours_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="onnxruntime cannot load it"):
        DetectionSession(Path(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match="file is missing"):
        DetectionSession(Path(tmp_path / "none.onnx"))
