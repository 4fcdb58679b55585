"""The prefilter drops points and does not change the detections of those that it keeps."""

import math

import pytest
import torch
from torch import Tensor

from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import PointPredictions
from ovd.model.postprocess import postprocess
from ovd.model.prefilter import MIN_NAMES, NUM_SAMPLED_NAMES, prefilter_points
from ovd.model.similarity import TextClassifier, unit_embeddings
from ovd.structures import Detections, Predictions

DIM, POINTS, SIZE = 16, 200, 100


def make_classifier(num_names: int, *, lowers: bool = False) -> TextClassifier:
    """Make a classifier of names that share a direction, as CLIP's do."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(num_names, DIM, generator=generator)
    text[:, 0] += 6
    lowered = 0.01 * torch.rand(num_names, generator=generator) if lowers else None
    return TextClassifier(
        unit_embeddings(text), torch.arange(num_names), torch.tensor(50.0), torch.tensor(-45.0), lowered
    )


def make_predictions(classifier: TextClassifier, *, objects: int) -> tuple[Predictions, Tensor]:
    """Make predictions of noise with vectors near a name at some points, and return them with those points."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, POINTS, DIM, generator=generator)
    chosen = torch.randperm(POINTS, generator=generator)[:objects].sort().values
    names = torch.randint(len(classifier), (objects,), generator=generator)
    embeddings[0, chosen] = classifier.text[names] + 0.02 * torch.randn(objects, DIM, generator=generator)
    corners = torch.rand(1, POINTS, 2, generator=generator) * SIZE * 0.8
    boxes = torch.cat([corners, corners + 10], dim=2)
    return Predictions(embeddings, boxes, torch.randn(1, POINTS, generator=generator)), chosen


def found_by(predictions: Predictions, classifier: TextClassifier, **options: float) -> Detections:
    sizes = torch.tensor([[SIZE, SIZE]])
    settings = DetectionOptions.model_validate({"max_detections": 50, "candidates": 100, **options})
    return postprocess(predictions, [classifier], input_sizes=sizes, original_sizes=sizes, options=settings)[0]


@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize("competition", [0.0, 20.0])
def test_what_is_kept_is_found_as_without_it(lowers: bool, competition: float) -> None:
    classifier = make_classifier(MIN_NAMES + 3, lowers=lowers)
    predictions, _ = make_predictions(classifier, objects=20)
    exact = found_by(predictions, classifier, competition=competition)
    found = found_by(predictions, classifier, competition=competition, prefilter=0.2)
    assert torch.equal(found.classes, exact.classes)
    assert torch.equal(found.boxes, exact.boxes)
    torch.testing.assert_close(found.scores, exact.scores)
    # With fewer points than objects, some detections are lost, and the others keep their scores.
    some = found_by(predictions, classifier, competition=competition, prefilter=0.02)
    assert {round(score, 5) for score in some.scores[:5].tolist()} <= {round(s, 5) for s in exact.scores.tolist()}
    assert len(some.scores) > 0
    assert not torch.equal(some.boxes, exact.boxes)


@pytest.mark.parametrize("hidden", [0, 150])
def test_points_are_chosen_by_their_scores_and_stay_in_order(hidden: int) -> None:
    classifier = make_classifier(MIN_NAMES + 500)
    predictions, objects = make_predictions(classifier, objects=30)
    predictions.quality[0, :hidden] = -torch.inf  # as in the padding
    image = PointPredictions(predictions.embeddings[0], predictions.boxes[0], predictions.quality[0], dense=None)
    chosen = prefilter_points(image, classifier, 0.25)
    assert len(chosen) == POINTS // 4
    assert (chosen.diff() > 0).all()
    assert torch.isin(objects[objects >= hidden], chosen).all()


@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize("share", [0.25, 0.333])
def test_they_are_the_points_that_score_best_for_their_best_sampled_name(
    monkeypatch, lowers: bool, share: float
) -> None:
    monkeypatch.setattr("ovd.model.prefilter.fast_low_precision", lambda _: False)
    classifier = make_classifier(MIN_NAMES, lowers=lowers)
    predictions, _ = make_predictions(classifier, objects=30)
    predictions.embeddings[0, 7] = 0
    image = PointPredictions(predictions.embeddings[0], predictions.boxes[0], predictions.quality[0], dense=None)
    sampled = slice(0, None, MIN_NAMES // NUM_SAMPLED_NAMES)
    embeddings = image.embeddings.double()
    cosines = embeddings @ classifier.text[sampled].double().T / embeddings.norm(dim=1).clamp(min=1e-9)[:, None]
    if classifier.name_penalty is not None:
        cosines -= classifier.name_penalty[sampled]
    scores = (50 * cosines.amax(dim=1) - 45).sigmoid() * image.quality.double().sigmoid()
    expected = scores.argsort(descending=True)[: math.ceil(share * POINTS)]
    assert prefilter_points(image, classifier, share).tolist() == sorted(expected.tolist())


def test_a_small_vocabulary_keeps_all_points() -> None:
    classifier = make_classifier(MIN_NAMES - 1)
    predictions, _ = make_predictions(classifier, objects=20)
    exact, found = found_by(predictions, classifier), found_by(predictions, classifier, prefilter=0.01)
    assert torch.equal(found.boxes, exact.boxes)
    assert torch.equal(found.scores, exact.scores)
    of_few_points = found_by(predictions, make_classifier(MIN_NAMES), prefilter=0.01)
    assert len(of_few_points.boxes.unique(dim=0)) == 0.01 * POINTS


def test_a_prefilter_of_other_options_is_checked_as_theirs_is() -> None:
    options = DetectionOptions(candidates=7)
    assert options.with_prefilter(0.2) == DetectionOptions(candidates=7, prefilter=0.2)
    assert options.prefilter is None
    for share in (0, 1, -0.1, 400, float("nan")):
        with pytest.raises(ValueError, match="it must be a share of the points, between 0 and 1"):
            options.with_prefilter(share)
