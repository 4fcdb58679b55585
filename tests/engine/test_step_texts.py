"""The texts that a step scores, and the images that each of them counts for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import ovd.model.federated
from ovd.config.training import TrainSection
from ovd.engine.step_texts import TextSampler
from ovd.engine.train import step_generator
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
    """Make a batch of annotated images followed by pairs."""
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
        TrainSection(steps=1, negatives="sampled", sampled_classes=1),
        noise=0.0,
        pair_texts=texts,
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
    assert len(rows) == 2  # the batch's class and a sampled one
    assert classes[2:] == sorted(own)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[0, :2] = torch.tensor([False, True])  # class 0 is not exhaustive in that image
    expected[1, :2] = True
    for image, mine in ((2, own[:2]), (3, own[2:])):
        for column, text in enumerate(classes[2:], start=2):
            expected[image, column] = text not in mine  # a pair's own texts are not its negatives
    assert torch.equal(texts.mask, expected)
    expected[2:, 2:] = True  # inside boxes of its other texts they are
    assert torch.equal(texts.mask_in_boxes, expected)
    assert texts.embeddings.shape == (5, 4)


def test_texts_of_pairs_are_negatives_where_they_mean_no_class_that_is_there(tmp_path):
    rows = np.eye(8, dtype=np.float16)
    files = {"classes": rows[:6], "texts": np.stack([rows[2], rows[7] + rows[4] / 8])}
    for name, variants in files.items():
        metadata = {"tower": "t", "names": json.dumps([f"{name}{row}" for row in range(len(variants))])}
        (tmp_path / name).write_bytes(save({"variants": variants[:, None]}, metadata))
    pair_texts = PairTexts([TextBank(tmp_path / "texts")], [np.ones(2, np.int64)], first_id=6)
    of = TextSampler(
        TextBank(tmp_path / "classes"),
        torch.full((6,), 5),
        TrainSection(steps=1, negatives="sampled", sampled_classes=6, pair_negatives=True),
        noise=0.0,
        pair_texts=pair_texts,
    )
    same_as_2, like_4 = pair_texts.ids(0).tolist()
    images = [annotated([2]), annotated([4, 5]), annotated([])]
    pairs = [pair([same_as_2], (same_as_2,)), pair([like_4], (like_4,))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ovd.model.federated, "NUM_NEAREST_CLASSES", 1)
        texts = of.sample(batch(images, pairs), torch.Generator().manual_seed(0))
    assert texts.class_ids.tolist() == [*range(6), *sorted([same_as_2, like_4])]
    assert texts.mask[:3, :6].all()
    columns = {text: texts.class_ids.tolist().index(text) for text in (same_as_2, like_4)}
    assert texts.mask[:3, columns[same_as_2]].tolist() == [False, True, True]
    assert texts.mask[:3, columns[like_4]].tolist() == [True, False, True]
    assert torch.equal(texts.mask_in_boxes[:3], texts.mask[:3])
    without = replace(of, train=of.train.model_copy(update={"pair_negatives": False}))
    plain = without.sample(batch(images, pairs), torch.Generator().manual_seed(0))
    assert not plain.mask[:3, 6:].any()
    assert torch.equal(plain.mask[3:], texts.mask[3:])  # the masks of pairs do not change
    assert torch.equal(plain.embeddings, texts.embeddings)
    only_pairs = of.sample(batch([], pairs), torch.Generator().manual_seed(0))
    assert only_pairs.mask.shape == (2, len(only_pairs.class_ids))


def test_without_pairs_no_text_of_a_pair_is_scored(sampler):
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


def sampler_of(path, num_names: int, held_out: torch.Tensor | None = None, **settings) -> TextSampler:
    """Build a sampler without pairs in which class c is in c + 1 images."""
    vocabulary = bank(path / "many", [f"c{row}" for row in range(num_names)])
    counts = torch.arange(1, num_names + 1)
    train = TrainSection(steps=1, sampled_classes=5, **settings)
    return TextSampler(vocabulary, counts, train, noise=0.0, held_out=held_out)


@pytest.mark.parametrize("negatives", ["sampled", "strict", "all"])
@pytest.mark.parametrize("name_dropout", [0.0, 0.4])
def test_names_that_are_held_out_are_never_drawn(tmp_path, negatives, name_dropout):
    held_out = torch.arange(20) % 3 == 2
    of = sampler_of(tmp_path, 20, negatives=negatives, held_out=held_out, name_dropout=name_dropout)
    drawn = set()
    for step in range(50):
        one = replace(annotated([step % 20, 8]), negative_classes=torch.tensor([2, (7 * step + 1) % 20]))
        texts = of.sample(batch([one, annotated([])], []), step_generator(0, step))
        assert len(texts.class_ids) == len(texts.embeddings) == texts.mask.shape[1] > 0
        assert not held_out[texts.class_ids].any()
        drawn |= set(texts.class_ids.tolist())
        if name_dropout == 0 and step % 20 % 3 != 2:
            assert step % 20 in texts.class_ids
    assert drawn == set((~held_out).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("negatives", ["sampled", "strict", "all"])
def test_a_name_that_is_held_out_stays_so_where_all_others_are_dropped(tmp_path, negatives):
    held_out = torch.tensor([True, False, True, False])
    of = sampler_of(tmp_path, 4, negatives=negatives, held_out=held_out, name_dropout=0.9)
    for step in range(50):
        texts = of.sample(batch([annotated([0, 1])], []), step_generator(0, step))
        assert not held_out[texts.class_ids].any()
        assert len(texts.class_ids) > 0


def test_dropout_leaves_out_its_share_of_the_names_anew_in_each_step(tmp_path):
    of = sampler_of(tmp_path, 200, negatives="all", name_dropout=0.3)
    steps = [of.sample(batch([annotated([5])], []), step_generator(0, step)).class_ids for step in range(50)]
    assert sum(map(len, steps)) / (50 * 200) == pytest.approx(0.7, abs=0.02)
    share_of_name = torch.bincount(torch.cat(steps), minlength=200) / 50
    assert 0.35 < share_of_name.min() < share_of_name.max() < 0.98
    assert len({tuple(ids.tolist()) for ids in steps}) == 50
    undropped = sampler_of(tmp_path, 200, negatives="all")
    whole = undropped.sample(batch([annotated([5])], []), step_generator(0, 0))
    assert whole.class_ids.tolist() == list(range(200))


@pytest.mark.parametrize("negatives", ["sampled", "strict", "all"])
def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path, negatives):
    def draws(steps: range) -> list:
        held_out = torch.arange(60) % 7 == 3
        of = sampler_of(tmp_path, 60, negatives=negatives, held_out=held_out, name_dropout=0.3)
        one = replace(annotated([4, 9, 30, 51]), negative_classes=torch.tensor([1, 2, 8]))
        return [of.sample(batch([one], []), step_generator(7, step)) for step in steps]

    for one, other in zip(draws(range(20))[12:], draws(range(12, 20)), strict=True):
        assert torch.equal(one.class_ids, other.class_ids)
        assert torch.equal(one.embeddings, other.embeddings)
        assert torch.equal(one.mask, other.mask)


def test_noise_is_added_to_classes_and_to_texts_of_pairs(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    of = batch([annotated([0])], [pair([own[0]], (own[0],))])
    plain, noisy = (replace(sampler, noise=noise).sample(of, torch.Generator().manual_seed(0)) for noise in (0.0, 0.5))
    is_class = plain.class_ids < 4
    for rows in (is_class, ~is_class):
        assert rows.any()
        assert ((plain.embeddings - noisy.embeddings)[rows].norm(dim=1) > 0.05).all()


def test_image_labels_are_of_the_batchs_own_texts_alone(sampler):
    own = sampler.pair_texts.ids(0).tolist()
    drawing = replace(sampler, sampled_texts=60)
    texts = drawing.sample(batch([annotated([0])], [pair([own[0]], (own[0],))]), torch.Generator().manual_seed(0))
    assert len(own) > 1
    assert texts.class_ids[texts.of_pairs].tolist() == [own[0]]
