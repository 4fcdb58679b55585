"""Scores of embeddings and texts: scaled cosines in any precision, and the initial bias of training."""

from dataclasses import replace

import pytest
import torch

from ovd.model import similarity
from ovd.model.similarity import TextClassifier, add_name_offsets, initial_bias, text_cosines, unit_embeddings
from ovd.structures import IGNORED


def test_logits_are_scaled_cosines() -> None:
    embeddings, text = torch.randn(2, 5, 8) * 7, torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    logits = 20.0 * text_cosines(embeddings, text) - 3.0
    expected = 20 * torch.cosine_similarity(embeddings[:, :, None], text, dim=-1) - 3
    torch.testing.assert_close(logits, expected)
    assert text_cosines(embeddings[:, :0], text).shape == (2, 0, 3)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 700, 1024), (5, 8), (0, 8), (8,)])
def test_cosines_of_low_precision_are_as_exact_as_in_float32(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = (
        10 ** torch.randn(*shape[:-1], 1, generator=generator) * torch.randn(shape, generator=generator)
    ).bfloat16()
    text = torch.nn.functional.normalize(torch.randn(20, shape[-1], generator=generator), dim=1)
    cosines = text_cosines(embeddings, text)
    assert cosines.dtype == torch.float32
    expected = torch.nn.functional.normalize(embeddings.double(), dim=-1) @ text.double().T
    torch.testing.assert_close(cosines.double(), expected, atol=1e-6, rtol=0)


def test_half_precision_is_normalized_in_float32() -> None:
    long = torch.full((1, 4), 300.0, dtype=torch.float16)  # its squared length, 360,000, overflows float16
    torch.testing.assert_close(unit_embeddings(long), torch.full((1, 4), 0.5))


def test_zero_embedding_has_a_finite_gradient() -> None:
    embeddings = torch.zeros(1, 4, requires_grad=True)
    logits = text_cosines(embeddings, torch.eye(4)) - 2.0
    logits.sum().backward()
    assert (logits == -2).all()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def make_classifier() -> TextClassifier:
    text = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    return TextClassifier(text, torch.tensor([3, 5, 8, 20]), torch.tensor(20.0), torch.tensor(-3.0))


def test_a_classifier_compares_with_its_rows() -> None:
    classifier, embeddings = make_classifier(), torch.randn(2, 5, 8) * 7
    assert len(classifier) == 4
    expected = 20 * torch.cosine_similarity(embeddings[:, :, None], classifier.text, dim=-1) - 3
    torch.testing.assert_close(classifier.logits(embeddings), expected)


def test_a_classifier_finds_rows_by_the_id_of_their_class() -> None:
    classifier = make_classifier()
    assert classifier.labels(torch.tensor([20, 3, 8, 3])).tolist() == [3, 0, 2, 0]
    assert classifier.labels(torch.arange(0)).tolist() == []
    selected = classifier.select(torch.tensor([False, True, False, True]))
    assert selected.class_ids.tolist() == [5, 20]
    assert torch.equal(selected.text, classifier.text[[1, 3]])
    assert selected.labels(torch.tensor([20, 5])).tolist() == [1, 0]
    assert (selected.scale, selected.bias) == (classifier.scale, classifier.bias)


def test_logits_of_some_classes_are_in_their_order() -> None:
    classifier, embeddings = make_classifier(), torch.randn(2, 5, 8)
    cosines = torch.cosine_similarity(embeddings[:, :, None], classifier.text[[3, 0, 3]], dim=-1)
    some = classifier.select(classifier.labels(torch.tensor([20, 3, 20])))
    torch.testing.assert_close(some.logits(embeddings), 20 * cosines - 3)
    assert classifier.select(classifier.labels(torch.arange(0))).logits(embeddings).shape == (2, 5, 0)


def test_a_classifier_has_no_row_for_other_classes() -> None:
    classifier = make_classifier()
    labels = [3, IGNORED, 0, 0, IGNORED, IGNORED]
    assert classifier.labels(torch.tensor([20, 4, 3, 3, 21, 0])).tolist() == labels
    nothing = classifier.select(torch.zeros(4, dtype=torch.bool))
    assert nothing.labels(torch.tensor([3, 20])).tolist() == [IGNORED, IGNORED]


def test_rows_of_classes_move_by_their_own_offsets_and_texts_of_pairs_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    text, offsets = unit_embeddings(torch.randn(4, 8, generator=generator)), torch.randn(3, 8, generator=generator)
    moved = add_name_offsets(text, torch.tensor([0, 2, 3, 9]), offsets)
    expected = torch.stack([text[0] + offsets[0], text[1] + offsets[2], text[2], text[3]])
    torch.testing.assert_close(moved, expected / expected.norm(dim=1, keepdim=True))


def test_rows_are_lowered_in_cosines_and_logits_and_in_every_part() -> None:
    plain, embeddings = make_classifier(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)) * 7
    lowered = torch.tensor([0.0, 0.05, 0.1, -0.2])
    classifier = replace(plain, name_penalty=lowered)
    cosines = torch.cosine_similarity(embeddings[:, :, None], plain.text, dim=-1) - lowered
    torch.testing.assert_close(classifier.cosines(embeddings), cosines)
    torch.testing.assert_close(classifier.logits(embeddings), 20 * cosines - 3)
    torch.testing.assert_close(plain.cosines(embeddings), cosines + lowered)
    mask = torch.tensor([False, True, False, True])
    part = classifier.select(mask)
    torch.testing.assert_close(part.cosines(embeddings), cosines[..., [1, 3]])
    torch.testing.assert_close(part.logits(embeddings), 20 * cosines[..., [1, 3]] - 3)
    some = classifier.select(torch.tensor([3, 0, 3, 1]))
    torch.testing.assert_close(some.logits(embeddings), 20 * cosines[..., [3, 0, 3, 1]] - 3)
    assert plain.select(mask).name_penalty is None
    nothing = replace(plain, name_penalty=torch.zeros(4))
    assert torch.equal(nothing.logits(embeddings), plain.logits(embeddings))


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("target", [0.01, 0.3])
def test_initial_bias_reaches_the_mean_probability(
    scale: float, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "CHUNK_ELEMENTS", 2000)
    monkeypatch.setattr(similarity, "INITIAL_PROBABILITY", target)
    generator = torch.Generator().manual_seed(0)
    text = unit_embeddings(torch.randn(30, 16, generator=generator))
    embeddings = torch.randn(301, 16, generator=generator) + 3 * text[:1]  # confident of the first class
    bias = initial_bias(embeddings, text, scale=scale)
    mean = torch.sigmoid((scale * text_cosines(embeddings, text) + bias).double()).mean()
    assert mean.item() == pytest.approx(target, rel=1e-4)


def test_initial_bias_at_the_ends_of_the_cosine() -> None:
    text = torch.eye(2)[:1]
    for sign in (1, -1):
        bias = initial_bias(sign * text, text, scale=100.0)
        assert torch.sigmoid(torch.tensor(sign * 100.0 + bias)).item() == pytest.approx(0.01, rel=1e-2)


def test_initial_bias_refuses_what_has_no_answer() -> None:
    text = torch.eye(2)
    with pytest.raises(ValueError, match="there are 0 and 2"):
        initial_bias(torch.zeros(0, 2), text, scale=1.0)
    with pytest.raises(ValueError, match="there are 1 and 0"):
        initial_bias(torch.ones(1, 2), text[:0], scale=1.0)
    with pytest.raises(ValueError, match="NaN"):
        initial_bias(torch.full((1, 2), torch.nan), text, scale=1.0)
