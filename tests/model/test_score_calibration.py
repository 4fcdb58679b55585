"""The map from scores to probabilities, the nearness to trained names, and the contents of a stored calibration."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.model.detection_options import DetectionOptions
from ovd.model.score_calibration import EPSILON, SCORE_SETTINGS, ScoreCalibration, ScoreMap, nearness_to
from ovd.model.similarity import unit_embeddings

OTHER_VALUES: dict[str, Any] = {
    "nms_iou": 0.5,
    "competition": 20.0,
    "competition_power": 0.3,
    "one_name_per_place": 0.8,
    "second_look": {"crops": 5},
}


def rows(count: int, seed: int = 0, dim: int = 16) -> torch.Tensor:
    return unit_embeddings(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def make_calibration(**options: Any) -> ScoreCalibration:
    given_options = DetectionOptions.model_validate(options)
    return ScoreCalibration(0.035, ScoreMap(1.3, 0.2, -0.7, -1.9), 0.31, given_options, rows(5))


slopes, shifts = st.floats(0.05, 5), st.floats(-3, 3)


@settings(deadline=None)
@given(slope=slopes, curve=st.floats(0, 5), offset=shifts, distance=shifts, nearness=st.floats(0, 1))
def test_probabilities_increase_with_the_score(
    slope: float, curve: float, offset: float, distance: float, nearness: float
) -> None:
    scores = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    found = ScoreMap(slope, curve, offset, distance)(scores, torch.full_like(scores, nearness))
    assert (found.diff() >= 0).all()
    assert found[-1] > found[0]
    assert ((found >= 0) & (found <= 1)).all()


def test_the_map_is_its_formula() -> None:
    score_map = ScoreMap(1.3, 0.2, -0.7, -1.9)
    scores, nearness = [0.02, 0.3, 0.77, 0.999], [1.0, 0.4, 0.0, 0.9]
    found = score_map(torch.tensor(scores), torch.tensor(nearness))
    assert found.dtype == torch.float32
    for value, s, n in zip(found.tolist(), scores, nearness, strict=True):
        odds = s**1.3 / (1 - s) ** 0.2 * math.exp(-0.7 - 1.9 * (1 - n))
        assert value == pytest.approx(odds / (1 + odds), rel=1e-4)


def test_slopes_of_one_without_offset_change_nothing_at_any_nearness() -> None:
    scores = torch.linspace(0.001, 0.999, 200)
    found = ScoreMap(1.0, 1.0, 0.0, 0.0)(scores, torch.linspace(0, 1, 200))
    torch.testing.assert_close(found, scores, atol=1e-6, rtol=1e-5)
    ends = ScoreMap(1.0, 1.0, 0.0, 0.0)(torch.tensor([0.0, 1.0]), torch.ones(2))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]), atol=2 * EPSILON, rtol=0)


def test_names_that_are_far_are_lowered_by_the_distance_alone() -> None:
    scores = torch.full((11,), 0.4)
    found = ScoreMap(1.0, 1.0, 0.0, -2.0)(scores, torch.linspace(0, 1, 11))
    odds = (found / (1 - found)).log()
    torch.testing.assert_close(odds - odds[-1], -2 * (1 - torch.linspace(0, 1, 11)), atol=1e-5, rtol=1e-5)


def test_no_detection_maps_to_none() -> None:
    assert ScoreMap(1.0, 1.0, 0.0, 0.0)(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_nearness_is_one_for_trained_texts_and_the_highest_cosine_otherwise() -> None:
    trained = rows(30)
    text = torch.cat([rows(20, seed=1), trained, -trained[:1], torch.zeros(1, 16)])
    found = nearness_to(text, trained)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(found[20:50], torch.ones(30), atol=1e-6, rtol=0)
    for row in range(20):
        cosines = [torch.dot(text[row], other).item() for other in trained]
        assert found[row].item() == pytest.approx(max(0.0, *cosines), abs=1e-6)
        assert found[row] < 0.99
    assert found[-1] == 0
    assert nearness_to(trained, trained[:0]).tolist() == [0] * 30
    calibration = make_calibration()
    torch.testing.assert_close(calibration.nearness(text), nearness_to(text, rows(5)))


def test_nearness_of_a_text_opposite_to_all_trained_ones_is_zero() -> None:
    text = torch.eye(4)
    assert nearness_to(-text[:1], text[:1]).tolist() == [0]
    assert nearness_to(text[3:], text[:2]).tolist() == [0]


def test_every_setting_that_scores_depend_on_is_tried_below() -> None:
    assert set(OTHER_VALUES) == set(SCORE_SETTINGS)


@pytest.mark.parametrize(("name", "value"), OTHER_VALUES.items())
def test_a_map_does_not_apply_with_another_value_of_a_setting(name: str, value: Any) -> None:
    others = DetectionOptions.model_validate({name: value})
    assert not make_calibration().applies_to(others)
    assert not make_calibration(**{name: value}).applies_to(DetectionOptions())
    assert make_calibration(**{name: value}).applies_to(others)
    assert make_calibration().threshold_for(others) is None
    assert make_calibration(**{name: value}).threshold_for(others) == 0.31


@pytest.mark.parametrize("score_map", [ScoreMap(1.3, 0.2, -0.7, -1.9), ScoreMap(0.4, 2.0, 1.5, 0.8)])
@pytest.mark.parametrize("probability", [0.0, 0.05, 0.3, 0.9])
def test_a_least_score_leaves_out_no_detection_above_a_probability(score_map: ScoreMap, probability: float) -> None:
    nearness = torch.tensor([0.2, 0.9, 0.5])
    least = score_map.min_score(probability, nearness)
    scores = torch.linspace(0, 1, 20_001)
    is_above = torch.stack([score_map(scores, near.expand(len(scores))) > probability for near in nearness]).any(dim=0)
    assert not is_above[scores < least].any()
    if probability > 0:
        assert is_above[scores > least + 1e-4].all()  # the bound is not lower than necessary


def test_no_score_reaches_a_probability_of_one() -> None:
    assert ScoreMap(1.3, 0.2, -0.7, -1.9).min_score(1.0, torch.tensor([0.5])) == 1


def test_settings_that_only_leave_out_boxes_do_not_matter() -> None:
    fewer = DetectionOptions(score_threshold=0.2, max_detections=7, candidates=50)
    assert make_calibration().applies_to(fewer)


@pytest.mark.parametrize("options", [{}, OTHER_VALUES, {"score_threshold": 0.1}], ids=["defaults", "all", "threshold"])
def test_json_gives_back_all_that_was_fitted(options: dict[str, Any]) -> None:
    calibration = make_calibration(**options)
    content = json.loads(json.dumps(calibration.to_json()))
    assert "trained_text" not in content
    found = ScoreCalibration.from_json(content, calibration.trained_text)
    assert found.to_json() == calibration.to_json()
    assert (found.name_bias, found.score_map, found.threshold) == (0.035, ScoreMap(1.3, 0.2, -0.7, -1.9), 0.31)
    assert torch.equal(found.trained_text, calibration.trained_text)
    assert found.applies_to(calibration.options)
    assert found.applies_to(DetectionOptions()) == calibration.applies_to(DetectionOptions())
