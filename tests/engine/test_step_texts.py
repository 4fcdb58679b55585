"""Which texts a step scores, and for which images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from ovd.engine.step_texts import TextSampler
from ovd.structures import Batch, Targets
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts


def bank(path, names: list[str]) -> TextBank:
    variants = np.random.default_rng(1).normal(size=(len(names), 1, 4)).astype(np.float16)
    path.write_bytes(save({"variants": variants}, {"tower": "t", "names": json.dumps(names)}))
    return TextBank(path)


def annotated(classes: list[int], not_exhaustive: tuple[int, ...] = ()) -> Targets:
    return replace(
        Targets.empty(),
        boxes=torch.tensor([[0.0, 0, 9, 9]]).repeat(len(classes), 1),
        classes=torch.tensor(classes, dtype=torch.int64),
        not_exhaustive_classes=torch.tensor(not_exhaustive, dtype=torch.int64),
    )


def pair(classes: list[int], texts: tuple[int, ...] = ()) -> Targets:
    return replace(annotated(classes), image_texts=torch.tensor(texts, dtype=torch.int64))


def batch(first: list[Targets], pairs: list[Targets]) -> Batch:
    """Annotated images, then pairs."""
    count = len(first) + len(pairs)
    return Batch(
        images=torch.zeros(count, 3, 32, 32, dtype=torch.uint8),
        sizes=torch.full((count, 2), 32),
        targets=(*first, *pairs),
        image_ids=tuple(range(count)),
        is_pair=torch.arange(count) >= len(first),
    )


@pytest.fixture
def sampler(tmp_path):
    vocabulary = bank(tmp_path / "classes", ["c0", "c1", "c2", "c3"])
    texts = PairTexts([bank(tmp_path / "texts", ["t0", "t1", "t2"])], [np.ones(3, np.int64)], first_id=4)
    return TextSampler(
        vocabulary,
        torch.tensor([5, 5, 5, 0]),
        negatives="sampled",
        sampled_classes=1,
        noise=0.0,
        pair_texts=texts,
        sampled_texts=0,
    )


def test_detection_data_and_pairs_are_not_held_against_each_other(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    texts = sampler.sample(
        batch([annotated([0], (0,)), annotated([])], [pair([own[0]], (own[0], own[1])), pair([], (own[2],))]),
        torch.Generator().manual_seed(0),
    )
    classes = texts.class_ids.tolist()
    rows = [row for row in classes if row < 4]
    assert rows[0] == 0
    assert len(rows) == 2  # the batch's class and one drawn
    assert classes[2:] == sorted(own)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[0, :2] = torch.tensor([False, True])  # class 0 is not exhaustive there
    expected[1, :2] = True
    for image, mine in ((2, own[:2]), (3, own[2:])):
        for column, text in enumerate(classes[2:], start=2):
            expected[image, column] = text not in mine  # a pair's own texts never are its negatives
    assert torch.equal(texts.mask, expected)
    expected[2:, 2:] = True  # in boxes of one another they are
    assert torch.equal(texts.mask_in_boxes, expected)
    assert texts.embeddings.shape == (5, 4)


def test_without_pairs_it_is_what_it_was(sampler):
    texts = sampler.sample(batch([annotated([2])], []), torch.Generator().manual_seed(0))
    assert texts.class_ids.max() < 4
    assert texts.mask.shape == (1, 2)


def test_pairs_alone_and_pairs_without_texts(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    texts = sampler.sample(batch([], [pair([own[1]], (own[1],)), pair([])]), torch.Generator().manual_seed(0))
    assert texts.mask.shape == (2, len(texts.class_ids))
    assert texts.mask[0].tolist() == [False] * len(texts.class_ids)
    assert texts.mask[1].tolist() == [text == own[1] for text in texts.class_ids.tolist()]


def test_drawn_texts_are_negatives_of_every_pair_but_those_they_belong_to(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    drawing = replace(sampler, sampled_texts=60)
    texts = drawing.sample(batch([annotated([0])], [pair([own[0]], (own[0],))]), torch.Generator().manual_seed(0))
    paired = texts.class_ids >= 4
    assert texts.class_ids[paired].tolist() == sorted(own)
    assert texts.mask[1, paired].tolist() == [text != own[0] for text in sorted(own)]
    assert not texts.mask[0, paired].any()


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 2, 1, 0], [0, 2, 1, 3]])
def test_pairs_may_stand_anywhere_in_a_batch(sampler, order):
    own = sampler.pair_texts.ids(0).tolist()
    last = batch([annotated([0], (0,)), annotated([2])], [pair([own[0]], (own[0], own[1])), pair([own[2]], (own[2],))])
    shuffled = replace(last, targets=tuple(last.targets[row] for row in order), is_pair=last.is_pair[order])
    drawing = replace(sampler, sampled_texts=2)
    expected, texts = (drawing.sample(of, torch.Generator().manual_seed(3)) for of in (last, shuffled))
    assert torch.equal(texts.mask, expected.mask[order])
    assert torch.equal(texts.mask_in_boxes, expected.mask_in_boxes[order])
    for name in ("class_ids", "embeddings", "of_pairs"):
        assert torch.equal(getattr(texts, name), getattr(expected, name))


def test_parts_of_a_batch_keep_their_pairs():
    whole = batch([annotated([0])], [pair([], (4,)), pair([], (5,))])
    shuffled = replace(whole, targets=whole.targets[::-1], is_pair=whole.is_pair.flip(0))
    parts = [shuffled.of_images(slice(row, row + 1)) for row in range(3)]
    assert [part.is_pair.tolist() for part in parts] == [[True], [True], [False]]
    assert [part.targets for part in parts] == [(targets,) for targets in shuffled.targets]
    assert shuffled.of_images(slice(1, 3)).to(torch.device("cpu")).is_pair.tolist() == [True, False]
