"""Queries are routed by name to the base detector or an expert; only the base detector uses the score ensemble."""

import pytest
import torch
from small_detector import build_detector

from ovd.experts.inference import Expert, ExpertInference
from ovd.experts.names import ExpertNames
from ovd.inference import ImageBatch, Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import ScoreEnsemble
from ovd.model.query_texts import QueryTexts

TEXT = torch.eye(4, 256)


@pytest.fixture
def inference(untrained_clip) -> ExpertInference:
    """A base detector, and an expert for the second row of `TEXT`."""
    detector = build_detector(untrained_clip, "head").requires_grad_(False).eval()
    base = Inference(detector, size=64, options=DetectionOptions(), low_precision=False)
    names = ExpertNames(("one",), TEXT[1:2], TEXT[2:], 1.0)
    return ExpertInference(base, [Expert("a", names, base, None)])


def test_an_ensembles_weights_go_with_the_names_that_an_answerer_is_asked_for(inference) -> None:
    of_base, of_expert = inference._route(QueryTexts(TEXT[:3], ScoreEnsemble(torch.tensor([0.1, 0.2, 0.3]), 50.0)))
    assert of_base.rows.tolist() == [0, 2]
    assert of_base.queries.ensemble is not None
    assert of_base.queries.ensemble.weights.tolist() == pytest.approx([0.1, 0.3])
    assert of_expert.rows.tolist() == [1]
    assert of_expert.queries.ensemble is None


def test_an_expert_detects_with_the_rows_it_learned_for_the_names_asked_for(inference) -> None:
    learned = torch.eye(6, 256)[4:]
    names = ExpertNames(("one", "two"), TEXT[1:3], TEXT[3:], 1.0, learned)
    base = inference.experts[0].inference
    _, of_expert = ExpertInference(base, [Expert("a", names, base, None)])._route(QueryTexts(TEXT[[2, 0, 1]]))
    assert of_expert.rows.tolist() == [0, 2]
    assert torch.equal(of_expert.queries.text, learned[[1, 0]])


def test_boxes_beyond_the_limit_of_the_merged_list_are_counted(inference) -> None:
    expert = inference.experts[0]
    base = Inference(
        expert.inference.detector, size=64, options=DetectionOptions(max_detections=5), low_precision=False
    )
    both = ExpertInference(base, [Expert("a", expert.names, base, None)], same_place="both")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(images, torch.full((2, 2), 64), torch.full((2, 2), 64))
    alone = [base.detect(QueryTexts(TEXT[rows]), batch) for rows in ([0, 2, 3], [1])]
    num_found = [len(found.scores) for of_detector in alone for found in of_detector]
    assert num_found == [5] * 4
    assert [len(found.scores) for found in both.detect(QueryTexts(TEXT), batch)] == [5, 5]
    assert both.num_capped == 10


def test_routes_are_kept_for_the_same_queries_and_no_others(inference) -> None:
    text, weights = TEXT[:3], torch.tensor([0.1, 0.2, 0.3])
    route = inference._route(QueryTexts(text, ScoreEnsemble(weights, 50.0)))
    assert inference._route(QueryTexts(text, ScoreEnsemble(weights, 50.0))) is route
    of_base, _ = inference._route(QueryTexts(text))
    assert of_base.queries.ensemble is None
    of_base, _ = inference._route(QueryTexts(text, ScoreEnsemble(1 - weights, 50.0)))
    assert of_base.queries.ensemble is not None
    assert of_base.queries.ensemble.weights.tolist() == pytest.approx([0.9, 0.7])


def test_it_runs_as_the_base_detector_does_but_has_no_predictions_of_one_detector(inference) -> None:
    base = inference.experts[0].inference
    assert (inference.detector, inference.size, inference.options) == (base.detector, base.size, base.options)
    assert not isinstance(inference, Inference)
    for name in ("predict", "detections", "classifier"):
        assert hasattr(base, name)
        assert not hasattr(inference, name)


def test_the_base_detector_finds_what_it_finds_alone(inference) -> None:
    base, rows = inference.experts[0].inference, torch.tensor([0, 2, 3])
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[64, 64], [21, 37]])  # the second image is padded
    batch, queries = ImageBatch(images, sizes, sizes), QueryTexts(TEXT)
    found = inference.detect(queries, batch)
    assert inference.num_capped == 0
    for own, alone in zip(found, base.detect(queries.take(rows), batch), strict=True):
        of_base = own.take(own.classes != 1)
        assert len(of_base.scores) > 0
        assert torch.equal(of_base.boxes, alone.boxes)
        assert torch.equal(of_base.scores, alone.scores)
        assert torch.equal(of_base.classes, rows[alone.classes])
