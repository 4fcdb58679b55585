"""Query texts are picked with the weights that belong to them."""

import pytest
import torch

from ovd.model.pair_scores import ScoreEnsemble
from ovd.model.query_texts import QueryTexts


def test_an_ensembles_weights_go_with_the_texts_that_are_taken() -> None:
    text, rows = torch.eye(3), torch.tensor([2, 0])
    taken = QueryTexts(text, ScoreEnsemble(torch.tensor([0.1, 0.2, 0.3]), 50.0)).take(rows)
    assert len(taken) == 2
    assert torch.equal(taken.text, text[rows])
    assert taken.ensemble is not None
    assert taken.ensemble.weights.tolist() == pytest.approx([0.3, 0.1])
    assert taken.ensemble.clip_scale == 50.0


def test_without_an_ensemble_none_is_taken() -> None:
    taken = QueryTexts(torch.eye(3)).take(torch.tensor([], dtype=torch.int64))
    assert len(taken) == 0
    assert taken.ensemble is None
