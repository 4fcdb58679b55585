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


def targets(classes: list[int], not_exhaustive: tuple[int, ...] = ()) -> Targets:
    empty = torch.empty(0, dtype=torch.int64)
    return Targets(
        boxes=torch.tensor([[0.0, 0, 9, 9]]).repeat(len(classes), 1),
        classes=torch.tensor(classes, dtype=torch.int64),
        negative_classes=empty,
        not_exhaustive_classes=torch.tensor(not_exhaustive, dtype=torch.int64),
        ignore_boxes=torch.empty(0, 4),
    )


def batch(annotated: list[Targets], paired: list[Targets]) -> Batch:
    count = len(annotated) + len(paired)
    return Batch(
        images=torch.zeros(count, 3, 32, 32, dtype=torch.uint8),
        sizes=torch.full((count, 2), 32),
        targets=(*annotated, *paired),
        image_ids=tuple(range(count)),
        num_pairs=len(paired),
    )


@pytest.fixture
def sampler(tmp_path):
    vocabulary = bank(tmp_path / "classes", ["c0", "c1", "c2", "c3"])
    texts = PairTexts([bank(tmp_path / "texts", ["t0", "t1", "t2"])], [np.ones(3, np.int64)], first_id=4)
    return TextSampler(vocabulary, torch.tensor([5, 5, 5, 0]), "sampled", 1, 0.0, texts, 0)


def test_detection_data_and_pairs_are_not_held_against_each_other(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    texts = sampler.sample(
        batch([targets([0], (0,)), targets([])], [targets([own[0]], (own[0], own[1])), targets([], (own[2],))]),
        torch.Generator().manual_seed(0),
    )
    classes = texts.classes.tolist()
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
    texts = sampler.sample(batch([targets([2])], []), torch.Generator().manual_seed(0))
    assert texts.classes.max() < 4
    assert texts.mask.shape == (1, 2)


def test_pairs_alone_and_pairs_without_texts(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    texts = sampler.sample(batch([], [targets([own[1]], (own[1],)), targets([])]), torch.Generator().manual_seed(0))
    assert texts.mask.shape == (2, len(texts.classes))
    assert texts.mask[0].tolist() == [False] * len(texts.classes)
    assert texts.mask[1].tolist() == [text == own[1] for text in texts.classes.tolist()]


def test_drawn_texts_are_negatives_of_every_pair_but_those_they_belong_to(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    drawing = replace(sampler, num_sampled_texts=60)
    texts = drawing.sample(batch([targets([0])], [targets([own[0]], (own[0],))]), torch.Generator().manual_seed(0))
    paired = texts.classes >= 4
    assert texts.classes[paired].tolist() == sorted(own)
    assert texts.mask[1, paired].tolist() == [text != own[0] for text in sorted(own)]
    assert not texts.mask[0, paired].any()
