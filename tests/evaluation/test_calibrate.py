"""The fit of a calibration, against hand-judged detections, known maps and biases, and brute-force thresholds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import build_detector

from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex, Labels
from ovd.data.loading.loader import LoaderOptions
from ovd.data.report import DataReport
from ovd.engine.signals import StopRequest
from ovd.evaluation import calibrate as module
from ovd.evaluation.calibrate import (
    BIASES,
    MIN_RIGHT,
    JudgedDetections,
    best_threshold,
    calibrate,
    fit_map,
    judge_detections,
)
from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreMap, nearness_to
from ovd.model.similarity import unit_embeddings
from ovd.structures import Detections
from ovd.text.encoder import encode_classes

LOADING = LoaderOptions(batch_size=4, workers=0)
FIELDS = ("scores", "weights", "right")

# --- right and wrong detections

NUM_CLASSES = 10
FIRST, SECOND, ELSEWHERE = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]


def labels_of(**values: Any) -> Labels:
    """Make labels with an object each of classes 0 and 1; classes 2 and 3 are verified absent, 4 is not exhaustive."""
    defaults = {"boxes": [FIRST, SECOND], "classes": [0, 1], "negative_classes": [2, 3], "not_exhaustive_classes": [4]}
    arrays = {
        name: np.array(value, np.float32).reshape(-1, 4) if "boxes" in name else np.array(value, np.int64)
        for name, value in {**defaults, **values}.items()
    }
    return replace(Labels.empty(), **arrays)


def verdict(box: list[float], of_class: int, labels: Labels, *, is_exhaustive: bool = False) -> tuple[bool, float]:
    """Return whether the detection is right, and its weight, which is 0 if it is left out.

    It is judged together with other detections, which must not matter.
    """
    others = [(FIRST, 0, 0.9), (SECOND, 0, 0.8), (ELSEWHERE, 9, 0.7)]
    found = Detections(
        torch.tensor([box, *(other for other, _, _ in others)]),
        torch.tensor([0.123, *(score for _, _, score in others)]),
        torch.tensor([of_class, *(other for _, other, _ in others)]),
    )
    judged = judge_detections(found, labels, num_classes=NUM_CLASSES, is_exhaustive=is_exhaustive)
    own = judged.scores == torch.tensor(0.123)
    if not own.any():
        return False, 0.0
    assert judged.classes[own].tolist() == [of_class]
    return bool(judged.right[own]), float(judged.weights[own])


def test_a_box_of_the_right_class_is_right() -> None:
    assert verdict(FIRST, 0, labels_of()) == (True, 1)
    assert verdict([0.0, 0, 10, 5.1], 0, labels_of()) == (True, 1)
    assert verdict(SECOND, 1, labels_of()) == (True, 1)


def test_a_box_that_overlaps_too_little_or_lies_elsewhere_is_wrong_if_its_class_is_annotated() -> None:
    assert verdict([0.0, 0, 10, 4.9], 0, labels_of()) == (False, 1)
    assert verdict(ELSEWHERE, 0, labels_of()) == (False, 1)


@pytest.mark.parametrize("of_class", [0, 2, 4, 5])
def test_a_box_on_an_object_of_another_class_is_wrong_whatever_is_known_of_its_class(of_class: int) -> None:
    assert verdict(SECOND, of_class, labels_of()) == (False, 1)


def test_a_verified_negative_stands_for_all_classes_of_which_nothing_is_annotated() -> None:
    """Verified negatives are weighted to represent all classes without annotations: of ten classes, two have a box and
    one is not exhaustive, so two negatives represent the other seven."""
    assert verdict(ELSEWHERE, 2, labels_of()) == (False, 3.5)
    assert verdict(ELSEWHERE, 3, labels_of(negative_classes=[3])) == (False, 7)
    assert verdict(ELSEWHERE, 3, labels_of(not_exhaustive_classes=[])) == (False, 4)


def test_a_class_with_boxes_that_is_not_exhaustive_is_subtracted_once() -> None:
    """A class that has boxes and is not exhaustive, as in LVIS, is subtracted only once."""
    assert verdict(ELSEWHERE, 2, labels_of(not_exhaustive_classes=[0, 1])) == (False, 4)


def test_classes_of_which_nothing_is_known_are_left_out() -> None:
    assert verdict(ELSEWHERE, 5, labels_of()) == (False, 0)
    assert verdict(ELSEWHERE, 2, labels_of(negative_classes=[])) == (False, 0)


def test_a_class_that_is_not_exhaustive_is_judged_on_boxes_alone() -> None:
    assert verdict(ELSEWHERE, 4, labels_of()) == (False, 0)
    labels = labels_of(not_exhaustive_classes=[0])
    assert verdict(ELSEWHERE, 0, labels) == (False, 0)
    assert verdict(FIRST, 0, labels) == (True, 1)
    assert verdict(ELSEWHERE, 4, labels_of(), is_exhaustive=True) == (False, 0)


@pytest.mark.parametrize("is_exhaustive", [False, True])
def test_in_a_crowd_only_boxes_on_objects_are_judged(is_exhaustive: bool) -> None:
    labels = labels_of(crowd_boxes=[[0.0, 0, 55, 55]])
    assert verdict(ELSEWHERE, 0, labels, is_exhaustive=is_exhaustive) == (False, 0)
    assert verdict(FIRST, 0, labels, is_exhaustive=is_exhaustive) == (True, 1)
    assert verdict(SECOND, 0, labels, is_exhaustive=is_exhaustive) == (False, 1)
    assert verdict([55.0, 55, 65, 65], 0, labels, is_exhaustive=is_exhaustive) == (False, 1)


def test_in_an_exhaustive_set_every_other_box_is_wrong() -> None:
    labels = labels_of(negative_classes=[], not_exhaustive_classes=[])
    for of_class in (0, 2, 5):
        assert verdict(ELSEWHERE, of_class, labels, is_exhaustive=True) == (False, 1)
    assert verdict(FIRST, 0, labels, is_exhaustive=True) == (True, 1)
    empty = labels_of(boxes=[], classes=[], negative_classes=[], not_exhaustive_classes=[])
    assert verdict(FIRST, 0, empty, is_exhaustive=True) == (False, 1)
    assert verdict(FIRST, 0, empty) == (False, 0)


def test_an_image_without_detections_has_none_to_judge() -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    judged = judge_detections(none, labels_of(), num_classes=NUM_CLASSES, is_exhaustive=False)
    assert len(judged.scores) == len(judged.right) == len(judged.weights) == 0


# --- the map


def simulated(score_map: ScoreMap, count: int = 40_000, *, seed: int = 0) -> tuple[JudgedDetections, torch.Tensor]:
    """Draw detections of 30 classes that are right as often as a score map says, most with low scores; return them and
    the nearness of each class."""
    generator = torch.Generator().manual_seed(seed)
    nearness = torch.cat([torch.ones(15), torch.rand(15, generator=generator)])
    scores = torch.rand(count, generator=generator) ** 2
    classes = torch.randint(0, 30, (count,), generator=generator)
    right = torch.rand(count, generator=generator) < score_map(scores, nearness[classes])
    return JudgedDetections(scores, classes, right, torch.ones(count, dtype=torch.float64)), nearness


@pytest.mark.parametrize(
    "known", [ScoreMap(1.0, 1.0, 0.0, 0.0), ScoreMap(1.5, 0.4, -0.5, -2.0), ScoreMap(0.7, 0.8, 0.3, 1.0)], ids=str
)
def test_a_known_map_is_recovered(known: ScoreMap) -> None:
    judged, nearness = simulated(known)
    found = fit_map(judged, nearness)
    assert found.weights.tolist() == pytest.approx(known.weights.tolist(), abs=0.15)
    scores, near = torch.linspace(0.05, 0.95, 19).repeat(2), torch.tensor([1.0, 0.3]).repeat_interleave(19)
    torch.testing.assert_close(found(scores, near), known(scores, near), atol=0.02, rtol=0)
    mean = found(judged.scores, nearness[judged.classes]).double().mean()
    assert mean.item() == pytest.approx(judged.right.double().mean().item(), abs=1e-4)


def test_the_fit_is_the_most_likely_one() -> None:
    judged, nearness = simulated(ScoreMap(1.5, 0.4, -0.5, -2.0), 3000)
    judged = replace(judged, weights=torch.linspace(0.5, 4, 3000, dtype=torch.float64))

    def cost(score_map: ScoreMap) -> float:
        p = score_map(judged.scores.double(), nearness[judged.classes])
        return float(-(judged.weights * torch.where(judged.right, p, 1 - p).log()).sum())

    found = fit_map(judged, nearness)
    for name in ("slope", "curve", "offset", "distance"):
        for step in (-0.03, 0.03):
            assert cost(replace(found, **{name: getattr(found, name) + step})) > cost(found)


def test_few_detections_of_unequal_weights_have_the_most_likely_map_too() -> None:
    """The fit is right for few detections of unequal weights; without a check of the loss, Newton's steps would diverge
    to hundreds of thousands here."""
    heavy = [0.043, 0.1915, 0.2292, 0.3066, 0.5167, 0.5661, 0.5680, 0.6384]
    wrong = [0.0085, 0.0879, 0.1095, 0.1321, 0.1330, 0.2297, 0.2866, 0.2946, 0.3157, 0.4253, 0.6483]
    right = [0.3280, 0.3988, 0.4277, 0.5240, 0.6991, 0.7184, 0.7903, 0.8061, 0.8491, 0.8719, 0.9335]
    scores = torch.tensor([*heavy, *wrong, *right])
    is_right = torch.tensor([False] * 4 + [True] * 4 + [False] * len(wrong) + [True] * len(right))
    weights = torch.tensor([37.5] * len(heavy) + [1.0] * (len(wrong) + len(right)), dtype=torch.float64)
    judged = JudgedDetections(scores, torch.zeros(len(scores), dtype=torch.int64), is_right, weights)
    found = fit_map(judged, torch.ones(1))
    assert found.slope > 5

    def cost(score_map: ScoreMap) -> float:
        p = score_map(scores.double(), torch.ones(len(scores)).double())
        return float(-(weights * torch.where(is_right, p, 1 - p).log()).sum())

    for name in ("slope", "offset"):
        for step in (-0.5, 0.5):
            assert cost(replace(found, **{name: getattr(found, name) + step})) > cost(found)


def weighted(judged: JudgedDetections, which: torch.Tensor) -> tuple[JudgedDetections, JudgedDetections]:
    """Return the detections twice: those in `which` once with a weight of 3, and once repeated three times."""
    weights = torch.where(which, 3.0, 1.0).double()
    repeated = torch.arange(len(which)).repeat_interleave(weights.long())
    parts = {name: getattr(judged, name)[repeated] for name in ("scores", "classes", "right", "weights")}
    return replace(judged, weights=weights), JudgedDetections(**parts)


def test_a_detection_of_weight_three_counts_as_three() -> None:
    judged, nearness = simulated(ScoreMap(1.5, 0.4, -0.5, -2.0), 2000)
    heavy, repeated = weighted(judged, torch.arange(2000) % 3 == 0)
    found, expected, without = (fit_map(item, nearness).weights for item in (heavy, repeated, judged))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found, without, atol=1e-3)
    p = ScoreMap(*found.tolist())(judged.scores, torch.ones(2000))
    p_repeated = ScoreMap(*found.tolist())(repeated.scores, torch.ones(len(repeated.scores)))
    threshold = best_threshold(p, heavy.weights, num_true=500)
    assert threshold == pytest.approx(best_threshold(p_repeated, repeated.weights, num_true=500), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000), count=st.integers(2, 60), tilt=st.sampled_from([-8.0, -1.0, 0.0, 1.0]),
    narrow=st.booleans(),
)  # fmt: skip
def test_a_map_never_turns_the_order_of_scores_round(seed: int, count: int, tilt: float, narrow: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator) * (0.1 if narrow else 1)
    right = torch.rand(count, generator=generator) < (tilt * (scores - scores.mean())).sigmoid()
    classes = torch.randint(0, 5, (count,), generator=generator)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    found = fit_map(JudgedDetections(scores, classes, right, weights), torch.linspace(0, 1, 5))
    assert found.weights.isfinite().all()
    assert found.slope >= 0
    assert found.curve >= 0
    ascending = found(torch.linspace(0, 1, 30), torch.full((30,), 0.5))
    assert (ascending.diff() >= 0).all()


def test_scores_that_are_lower_where_right_get_a_flat_map_at_the_share_of_right_ones() -> None:
    scores = torch.linspace(0.1, 0.9, 900)
    right = torch.arange(900) < 300
    judged = JudgedDetections(scores, torch.zeros(900, dtype=torch.int64), right, torch.ones(900, dtype=torch.float64))
    found = fit_map(judged, torch.ones(1))
    assert (found.slope, found.curve) == (0, 0)
    torch.testing.assert_close(found(scores, torch.ones(900)), torch.full((900,), 1 / 3), atol=1e-3, rtol=0)


def test_scores_that_tell_right_from_wrong_get_a_finite_and_steep_map() -> None:
    scores = torch.cat([torch.linspace(0.01, 0.4, 200), torch.linspace(0.6, 0.99, 50)])
    classes, weights = torch.zeros(250, dtype=torch.int64), torch.ones(250, dtype=torch.float64)
    found = fit_map(JudgedDetections(scores, classes, scores > 0.5, weights), torch.ones(1))
    assert found.weights.isfinite().all()
    p = found(scores, torch.ones(250))
    assert p[:200].max() < 0.1
    assert p[200:].min() > 0.9


@pytest.mark.parametrize("num_far", [MIN_RIGHT - 1, MIN_RIGHT])
def test_the_term_for_distance_needs_right_detections_of_names_that_are_far(num_far: int) -> None:
    judged, nearness = simulated(ScoreMap(1.5, 0.4, -0.5, -1.0), 5000)
    far_and_right = ((nearness[judged.classes] < 1) & judged.right).nonzero()[:, 0]
    kept = torch.ones(5000, dtype=torch.bool)
    kept[far_and_right[num_far:]] = False
    fewer = JudgedDetections(*(getattr(judged, name)[kept] for name in ("scores", "classes", "right", "weights")))
    assert (fit_map(fewer, nearness).distance != 0) == (num_far >= MIN_RIGHT)


def test_trained_names_alone_give_no_term_for_distance() -> None:
    """Trained names alone give no distance term, since their nearness is 1 except for rounding."""
    text = unit_embeddings(torch.randn(30, 512, generator=torch.Generator().manual_seed(0)))
    judged, _ = simulated(ScoreMap(1.5, 0.4, -0.5, 0.0), 5000)
    assert fit_map(judged, nearness_to(text, text)).distance == 0


# --- the threshold


def f1_above(threshold: float, probabilities: torch.Tensor, weights: torch.Tensor, num_true: int) -> float:
    expected, reported = 0.0, 0.0
    for p, weight in zip(probabilities.tolist(), weights.tolist(), strict=True):
        if p >= threshold:
            expected += p * weight
            reported += weight
    return 2 * expected / (reported + num_true)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_true", [1, 40, 1000])
def test_the_threshold_is_the_best_of_all(seed: int, num_true: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(150, generator=generator, dtype=torch.float64) ** (1 + seed)
    weights = 5 * torch.rand(150, generator=generator, dtype=torch.float64)
    found = best_threshold(probabilities, weights, num_true=num_true)
    best = max(probabilities.tolist(), key=lambda p: f1_above(p, probabilities, weights, num_true))
    assert found == best


def test_a_best_threshold_is_half_of_the_best_f1() -> None:
    """For true probabilities, the best threshold is half of the best F1 (Lipton et al., 2014)."""
    probabilities = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    weights = torch.ones(20_000, dtype=torch.float64)
    for missed in (0, 3000):
        num_true = round(probabilities.sum().item()) + missed
        threshold = best_threshold(probabilities, weights, num_true=num_true)
        f1 = f1_above(threshold, probabilities, weights, num_true)
        assert 0.2 < f1 < 0.9
        assert threshold == pytest.approx(f1 / 2, abs=0.002)


# --- the bias towards trained names


@pytest.fixture(scope="module")
def inference(tiny_clip) -> Inference:
    detector = build_detector(tiny_clip, "pyramid", "head").eval()
    return Inference(detector, size=96, options=DetectionOptions(), low_precision=False)


@pytest.fixture(scope="module")
def index(miniature_world) -> AnnotationIndex:
    annotations = miniature_world / "annotations" / "lvis_val.json"
    whole = load_annotations(annotations, miniature_world / "images", format="lvis", report=DataReport())
    return whole.take(np.arange(8))


@pytest.fixture(scope="module")
def text(tiny_clip, index) -> torch.Tensor:
    return encode_classes(tiny_clip, [category.name for category in index.categories], ("{}",))


class Attraction:
    """Boxes of 40 names, the last ten held out, with cosines that training has raised for trained names and names near
    them."""

    def __init__(self, raised: float) -> None:
        generator = torch.Generator().manual_seed(0)
        centers = unit_embeddings(torch.randn(8, 32, generator=generator)).repeat(5, 1)
        self.text = unit_embeddings(centers + 0.11 * torch.randn(40, 32, generator=generator))
        self.held_out = np.arange(40) >= 30
        self.nearness = nearness_to(self.text, self.text[:30])
        self.classes = torch.arange(40).repeat(25)
        noise = 0.3 * torch.randn(1000, 32, generator=generator)
        embeddings = unit_embeddings(self.text[self.classes] + noise)
        self.cosines = embeddings @ self.text.T + raised * self.nearness

    def shares(self, bias: float) -> tuple[float, float]:
        """Return the share of boxes named right, for trained and for held-out names."""
        right = (self.cosines - bias * self.nearness).argmax(dim=1) == self.classes
        return right[self.classes < 30].double().mean().item(), right[self.classes >= 30].double().mean().item()


def fitted_bias(
    attraction: Attraction, inference: Inference, index: AnnotationIndex, monkeypatch, classes: range = range(40)
) -> float:
    def at_true_boxes(*_):
        for part in torch.isin(attraction.classes, torch.tensor(classes)).nonzero()[:, 0].split(70):
            yield attraction.cosines[part], attraction.classes[part]

    monkeypatch.setattr(module, "_at_true_boxes", at_true_boxes)
    return module._fit_bias(
        inference, attraction.text, index, LOADING, attraction.nearness, attraction.held_out, StopRequest()
    )


@pytest.mark.parametrize("raised", [0.05, 0.1])
def test_names_that_attract_the_boxes_of_others_are_lowered(inference, index, monkeypatch, raised) -> None:
    attraction = Attraction(raised)
    bias = fitted_bias(attraction, inference, index, monkeypatch)
    assert bias == pytest.approx(raised, abs=0.015)
    before, after = attraction.shares(0.0), attraction.shares(bias)
    assert after[1] > before[1] + 0.02
    assert sum(after) > sum(before)
    assert abs(after[0] - after[1]) < 0.5 * abs(before[0] - before[1])


def test_names_count_alike_however_many_boxes_they_have(inference, index, monkeypatch) -> None:
    attraction = Attraction(0.1)
    bias = fitted_bias(attraction, inference, index, monkeypatch)
    often = torch.where((attraction.classes < 8) | (attraction.classes >= 37), 9, 1)
    attraction.cosines, attraction.classes = (
        rows.repeat_interleave(often, dim=0) for rows in (attraction.cosines, attraction.classes)
    )
    assert fitted_bias(attraction, inference, index, monkeypatch) == bias


def test_names_that_attract_none_are_not_lowered(inference, index, monkeypatch) -> None:
    attraction = Attraction(0.0)
    attraction.cosines[torch.arange(1000), attraction.classes] += 1  # now every box is named right
    assert fitted_bias(attraction, inference, index, monkeypatch) == 0


@pytest.mark.parametrize("classes", [range(30), range(30, 40)], ids=["trained alone", "held out alone"])
def test_without_boxes_of_both_kinds_of_names_there_is_no_bias(inference, index, monkeypatch, classes) -> None:
    assert fitted_bias(Attraction(0.1), inference, index, monkeypatch, classes) == 0


def test_cosines_at_true_boxes_are_those_of_the_nearest_matched_point(inference, index, text) -> None:
    """The cosines at true boxes are those of the nearest matched point; a fresh gated detector has CLIP's embeddings,
    which name many boxes right."""
    parts = list(module._at_true_boxes(inference, text, index, LoaderOptions(3, workers=0)))
    assert len(parts) == len(index)
    cosines, classes = (torch.cat(part) for part in zip(*parts, strict=True))
    assert cosines.shape == (len(classes), len(text))
    assert 0 < len(classes) <= len(index.boxes.values)
    for row, (_, of_image) in enumerate(parts):
        assert set(of_image.tolist()) <= set(index.record(row).labels.classes.tolist())
    assert (cosines.argmax(dim=1) == classes).double().mean() > 0.15
    singly = module._at_true_boxes(inference, text, index, LoaderOptions(1, workers=0))
    one_by_one = torch.cat([part for part, _ in singly])
    torch.testing.assert_close(one_by_one, cosines, atol=1e-5, rtol=0)


# --- all of it


def fitted(inference: Inference, text: torch.Tensor, index: AnnotationIndex, held_out: np.ndarray, **more: Any):
    return calibrate(inference, text, index, LOADING, held_out=held_out, is_exhaustive=False, **more)


def test_without_held_out_names_there_is_a_map_but_no_bias_and_no_distance(inference, index, text) -> None:
    found = fitted(inference, text, index, np.zeros(len(text), bool))
    assert found.name_bias == 0
    assert found.score_map.distance == 0
    assert found.score_map.slope + found.score_map.curve > 0
    assert torch.equal(found.trained_text, text)
    assert found.options is inference.options
    assert 0 < found.threshold < 1


@pytest.mark.parametrize("name_bias", [0.0, 0.0375])
def test_a_known_bias_is_taken_instead_of_a_measured_one(inference, index, text, name_bias) -> None:
    held_out = np.arange(len(text)) % 3 == 0
    found = fitted(inference, text, index, held_out, name_bias=name_bias)
    assert found.name_bias == name_bias
    calibrated = replace(inference, calibration=found)
    lowered = calibrated.classifier(text).name_penalty
    if name_bias == 0:
        assert lowered is None
    else:
        torch.testing.assert_close(lowered, name_bias * found.nearness(text))


def test_calibrated_scores_add_up_to_the_number_of_right_boxes(inference, index, text) -> None:
    held_out = np.arange(len(text)) % 3 == 0
    found = fitted(inference, text, index, held_out)
    assert torch.equal(found.trained_text, text[~held_out])
    assert found.name_bias in BIASES
    calibrated = replace(inference, calibration=found)
    assert calibrated.threshold == found.threshold
    parts = []
    for row, (_, detections) in enumerate(calibrated.dataset(QueryTexts(text), index, LOADING)):
        labels = index.record(row).labels
        parts.append(judge_detections(detections, labels, num_classes=len(text), is_exhaustive=False))
    scores, weights, is_right = (torch.cat([getattr(part, name) for part in parts]) for name in FIELDS)
    expected, right = float((weights * scores).sum()), float((weights * is_right).sum())
    assert right > 0
    assert expected == pytest.approx(right, rel=0.02)
    num_true = sum(len(index.record(row).labels.classes) for row in range(len(index)))
    best = max(f1_above(threshold, scores, weights, num_true) for threshold in scores.unique().tolist())
    assert f1_above(found.threshold - 1e-6, scores, weights, num_true) == pytest.approx(best, rel=1e-3)
    assert num_true > 2 * len(index)


@pytest.mark.parametrize("distance", [-3.0, 3.0])
def test_the_best_of_an_image_are_those_of_the_probabilities(inference, index, text, distance) -> None:
    """The detections kept per image are the best by probability, however much the names' distance from trained ones
    changes the order of scores."""
    found = fitted(inference, text, index, np.arange(len(text)) % 3 == 0)
    found = replace(found, score_map=replace(found.score_map, distance=distance))

    def detect(most: int) -> list[Detections]:
        options = DetectionOptions(max_detections=most)
        calibrated = replace(inference, options=options, calibration=found)
        return [detections for _, detections in calibrated.dataset(QueryTexts(text), index, LOADING)]

    of_few = detect(7)
    assert len(of_few) == len(index) > 0
    for few, all_of_image in zip(of_few, detect(3000), strict=True):
        assert len(few.scores) == 7
        assert torch.equal(few.scores, all_of_image.scores[:7])
        assert torch.equal(few.boxes, all_of_image.boxes[:7])


def test_a_detector_that_finds_nothing_stops_with_the_name_of_the_file(inference, index, text) -> None:
    blind = replace(inference, options=DetectionOptions(score_threshold=1.0))
    with pytest.raises(ValueError, match=r"lvis_val\.json: no true box in 8 held-out images is found"):
        fitted(blind, text, index, np.zeros(len(text), bool))


def test_a_box_at_exactly_half_of_an_object_is_right() -> None:
    assert verdict([0.0, 0, 10, 5], 0, labels_of()) == (True, 1.0)
