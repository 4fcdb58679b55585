"""Labeled pairs as training data: the choice of pairs, boxes and texts."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_rows import ragged
from safetensors.numpy import save

from ovd.config.training import BoxFilters
from ovd.data.index import Ragged
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.format_count import format_count
from ovd.selftrain.filtered_labels import FilteredLabels
from ovd.selftrain.labeled_pairs import (
    LabeledPairs,
    count_truncated_pairs,
    limit_boxes_per_text,
    read_filtered_labels,
)
from ovd.selftrain.labels import ShardLabels, write_labels
from ovd.selftrain.ledger import LabelCounts, Ledger
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts


def shard_labels(keys: list[str], texts: list[str], queries: list[list[int]], found: list[list[int]]) -> ShardLabels:
    """Make a shard of labels; `found` has the texts of each pair's boxes, and box k (from 0) is k + 1 px wide and
    high."""
    boxes = [[[0, 0, k + 1, k + 1] for k in range(len(row))] for row in found]
    return ShardLabels(
        keys=tuple(keys),
        reasons=(None,) * len(keys),
        image_sizes=np.array([[40, 30]] * len(keys), np.int64).reshape(-1, 2),
        texts=tuple(texts),
        queries=ragged(queries, np.int64),
        boxes=ragged(boxes, np.float32, 4),
        scores=ragged([[0.5] * len(row) for row in found], np.float32),
        box_texts=ragged(found, np.int64),
    )


@pytest.fixture
def parts(tmp_path):
    """Two shards of three pairs with their labels and texts; pair 1 has no text, pair 2 texts without boxes."""
    folder = tmp_path / "pairs"
    write_pair_shards(folder, [Pair(f"{k}", b"image %d" % k, "caption", {}) for k in range(6)], pairs_per_shard=3)
    labels = [
        shard_labels(["0", "1", "2"], ["cat", "dog"], [[0, 1], [], [1]], [[1, 0, 1], [], []]),
        shard_labels(["3", "4", "5"], ["bird", "cat"], [[0], [1], [0, 1]], [[0], [1, 1], [0, 1]]),
    ]
    banks = []
    for number, of_shard in enumerate(labels):
        path = tmp_path / f"{number}.safetensors"
        variants = np.ones((len(of_shard.texts), 1, 4), np.float16)
        path.write_bytes(save({"variants": variants}, {"tower": "t", "names": json.dumps(of_shard.texts)}))
        banks.append(TextBank(path))
    return PairShards(folder), labels, PairTexts(banks, [np.ones(2, np.int64), np.ones(2, np.int64)], first_id=100)


def everything(labels: list[ShardLabels]) -> list[np.ndarray]:
    return [np.ones(len(of_shard.scores.values), bool) for of_shard in labels]


def kept_of(labels: list[ShardLabels], masks: list[np.ndarray]) -> list[FilteredLabels]:
    return [FilteredLabels.from_labels(of_shard, mask) for of_shard, mask in zip(labels, masks, strict=True)]


def test_pairs_with_a_kept_box_with_their_own_pixels_boxes_and_texts(parts):
    shards, labels, texts = parts
    kept = everything(labels)
    kept[0][1] = False  # drop the second box of pair 0
    kept[1][1:3] = False  # drop both boxes of pair 4
    pairs = LabeledPairs(shards, kept_of(labels, kept), texts, with_boxes=True, box_counts={})
    assert [-1 - identifier for identifier in pairs.image_ids.tolist()] == [0, 3, 5]
    assert [pairs.encoded(row) for row in range(3)] == [b"image 0", b"image 3", b"image 5"]
    cat, dog = texts.ids(0).tolist()
    bird, same_cat = texts.ids(1).tolist()
    assert cat == same_cat
    record = pairs.record(0)
    assert record.labels.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 3, 3]]
    assert record.labels.classes.tolist() == [dog, dog]
    assert (record.height, record.width) == (40, 30)
    assert record.labels.image_texts.tolist() == sorted([cat, dog])  # with the text that has no kept box
    assert record.labels.negative_classes.tolist() == record.labels.not_exhaustive_classes.tolist() == []
    assert pairs.record(2).labels.classes.tolist() == [bird, cat]
    assert str(record.path).endswith("00000.tar:0")


def test_the_summary_tells_the_boxes_to_train_on_from_those_left_out(parts):
    shards, labels, texts = parts
    kept = kept_of(labels, everything(labels))
    counts = {"min_score": 2150, "max_per_text": 0, "kept": 1}
    pairs = LabeledPairs(shards, kept, texts, with_boxes=True, box_counts=counts)
    assert pairs.summary == "4 of 6 image-text pairs, 3 texts, 1 box; boxes left out by filters: min_score 2,150"
    all_kept = LabeledPairs(shards, kept, texts, with_boxes=True, box_counts={"min_score": 0, "kept": 11})
    assert all_kept.summary == "4 of 6 image-text pairs, 3 texts, 11 boxes"


def test_where_all_images_were_asked_for_the_same_classes_only_those_that_were_found_are_their_texts(parts):
    shards, _, texts = parts
    labels = [
        shard_labels(["0", "1", "2"], ["cat", "dog"], [[0, 1]] * 3, [[1, 1], [0, 1], []]),
        shard_labels(["3", "4", "5"], ["bird", "cat"], [[0, 1]] * 3, [[0, 0], [0], []]),
    ]
    masks = everything(labels)
    masks[0][3] = False  # drop the dog of pair 1
    kept = [
        FilteredLabels.from_labels(of_shard, mask, only_box_texts=True)
        for of_shard, mask in zip(labels, masks, strict=True)
    ]
    (cat, dog), (bird, _) = texts.ids(0).tolist(), texts.ids(1).tolist()
    for with_boxes in (True, False):
        pairs = LabeledPairs(shards, kept, texts, with_boxes=with_boxes, box_counts={})
        assert [-1 - identifier for identifier in pairs.image_ids.tolist()] == [0, 1, 3, 4]
        found = [pairs.record(row).labels.image_texts.tolist() for row in range(len(pairs))]
        assert found == [[dog], [cat], [bird], [bird]]
    assert [of_shard.pair_counts.tolist() for of_shard in kept] == [[1, 1], [2, 0]]
    limited, _ = limit_boxes_per_text(kept, texts, 1)
    assert limited[1].num_texts().tolist() == [1, 1, 0]  # a box that the limit removes still counts as found


@pytest.mark.parametrize("queries", ["classes", "nouns"])
@pytest.mark.parametrize(("max_boxes", "min_score", "cut"), [(2, 0.3, 3), (2, 0.6, 0), (3, 0.3, 1), (None, 0.3, 0)])
def test_the_ledger_says_whether_a_text_must_have_been_found_and_where_boxes_may_be_missing(
    parts, tmp_path, capsys, queries, max_boxes, min_score, cut
):
    shards, labels, _ = parts
    files = []
    for of_shard, name in zip(labels, shards.file_names, strict=True):
        files.append(tmp_path / f"{name.removesuffix('.tar')}.safetensors")
        variants = np.ones((2, 1, 4), np.float16)
        index = shards.index(name)
        sha256 = write_labels(files[-1], of_shard, index=index, variants=variants, text_tower="t", settings={})
        settings = {"text_tower": "t", "queries": queries} | ({"max_boxes": max_boxes} if max_boxes else {})
        Ledger(name, "", sha256, settings, LabelCounts(3, 3, 0, 0, 2, 0, {}), {}).write(files[-1])
    kept, _ = read_filtered_labels(files, BoxFilters(keep="all", min_score=min_score), shards)
    if min_score < 0.5:  # all boxes score 0.5
        of_pairs = [of_shard.texts(pair).tolist() for of_shard in kept for pair in range(3)]
        assert of_pairs == [[0, 1], [], [] if queries == "classes" else [1], [0], [1], [0, 1]]
    said = capsys.readouterr().out
    assert (f"boxes above data.pairs.min_score may be missing in {format_count(cut, 'pair')}" in said) == (cut > 0)
    assert bool(said) == (cut > 0)


def test_boxes_that_are_selected_later_are_those_that_pass_at_once(parts):
    _, (labels, _), _ = parts
    labels = replace(labels, scores=ragged([[0.5, 0.25, 0.125], [], []], np.float32))
    mask = np.array([False, True, True])
    later, at_once = kept_of([labels], [~np.zeros(3, bool)])[0].select(mask), kept_of([labels], [mask])[0]
    for name in ("boxes", "scores", "box_texts"):
        assert getattr(later, name).values.tolist() == getattr(at_once, name).values.tolist()
        assert getattr(later, name).offsets.tolist() == [0, 2, 2, 2]
    assert later.scores.values.tolist() == [0.25, 0.125]
    assert later.texts(0).tolist() == [0, 1]


def test_boxes_may_be_missing_where_the_last_one_within_the_limit_scores_enough():
    scores = [[0.9, 0.8, 0.5], [0.9, 0.8, 0.25], [0.9, 0.8], [0.9, 0.75, 0.5, 0.125], []]
    found = [[0] * len(of_pair) for of_pair in scores]
    labels = shard_labels([f"{key}" for key in range(5)], ["cat"], [[0]] * 5, found)
    labels = replace(labels, scores=ragged(scores, np.float32))
    counts = [count_truncated_pairs(labels, min_score, max_boxes=3) for min_score in (0.0, 0.25, 0.3, 0.5, 0.6)]
    assert counts == [3, 3, 2, 2, 0]


def test_image_level_labels_take_every_pair_with_a_text_and_no_box(parts):
    shards, labels, texts = parts
    pairs = LabeledPairs(shards, kept_of(labels, everything(labels)), texts, with_boxes=False, box_counts={})
    assert [-1 - identifier for identifier in pairs.image_ids.tolist()] == [0, 2, 3, 4, 5]
    for row in range(len(pairs)):
        assert len(pairs.record(row).labels.boxes) == len(pairs.record(row).labels.classes) == 0
    assert pairs.record(1).labels.image_texts.tolist() == [texts.ids(0)[1]]


def test_nothing_left_and_other_shards_are_errors(parts):
    shards, labels, texts = parts
    with pytest.raises(ValueError, match="passes the filters"):
        LabeledPairs(
            shards, kept_of(labels, [~mask for mask in everything(labels)]), texts, with_boxes=True, box_counts={}
        )
    with pytest.raises(ValueError, match="6 pairs, but its labels have 3"):
        LabeledPairs(shards, kept_of(labels[:1], everything(labels)[:1]), texts, with_boxes=True, box_counts={})


def test_what_is_not_kept_is_not_held(parts):
    _, labels, _ = parts
    (kept,) = kept_of(labels[1:], [np.array([True, False, False, False, True])])
    assert kept.boxes.values.shape == (2, 4)
    assert kept.boxes.values.base is None  # a copy, not a view of all boxes
    assert [kept.box_texts[pair].tolist() for pair in range(3)] == [[0], [], [1]]
    assert kept.pair_counts.tolist() == [2, 2]


def test_the_limit_per_text_holds_over_shards_whatever_row_the_text_has_there(parts):
    _, labels, texts = parts
    kept, num_removed = limit_boxes_per_text(kept_of(labels, everything(labels)), texts, 2)
    assert num_removed == 2
    # All scores are equal, so the first two boxes of each text stay: dog, cat, dog; bird, cat, (cat), bird, (cat).
    assert [of_shard.box_texts.values.tolist() for of_shard in kept] == [[1, 0, 1], [0, 1, 0]]
    assert kept[1].boxes.offsets.tolist() == [0, 1, 2, 3]


def test_the_fingerprint_tells_labels_apart(parts):
    shards, labels, texts = parts

    def fingerprint(masks: list[np.ndarray], first: ShardLabels = labels[0]) -> str:
        return LabeledPairs(
            shards, kept_of([first, labels[1]], masks), texts, with_boxes=True, box_counts={}
        ).fingerprint()

    masks = everything(labels)
    fewer = [masks[0], masks[1].copy()]
    fewer[1][2] = False
    moved = Ragged(labels[0].boxes.values + np.float32(1), labels[0].boxes.offsets)
    swapped = Ragged(1 - labels[0].box_texts.values, labels[0].box_texts.offsets)
    asked = Ragged(1 - labels[0].queries.values, labels[0].queries.offsets)
    changed = [replace(labels[0], **part) for part in ({"boxes": moved}, {"box_texts": swapped}, {"queries": asked})]
    assert fingerprint(masks) == fingerprint(everything(labels))
    assert len({fingerprint(masks), fingerprint(fewer), *(fingerprint(masks, first) for first in changed)}) == 5


@given(st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=12))
@settings(deadline=None)
def test_lists_that_repeat_are_held_once(queries):
    labels = shard_labels([f"{row}" for row in range(len(queries))], ["a", "b", "c"], queries, [[] for _ in queries])
    kept = FilteredLabels.from_labels(labels, np.zeros(0, bool))
    assert [kept.texts(pair).tolist() for pair in range(len(queries))] == queries
    assert kept.num_texts().tolist() == list(map(len, queries))
    assert len(kept.text_lists.offsets) - 1 == len(list(itertools.groupby(queries)))
    assert kept.pair_counts.tolist() == [sum(of_pair.count(text) for of_pair in queries) for text in range(3)]


def test_the_fingerprint_tells_ids_of_texts_apart(parts):
    shards, labels, texts = parts
    banks = [TextBank(variants.path) for variants in texts._banks]
    other = PairTexts(banks, [np.ones(2, np.int64), np.ones(2, np.int64)], first_id=101)
    found = {
        LabeledPairs(shards, kept_of(labels, everything(labels)), of, with_boxes=True, box_counts={}).fingerprint()
        for of in (texts, other)
    }
    assert len(found) == 2
