"""Filters of pseudo-labels: every rule against a loop over single boxes, and counts of removed boxes."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from ovd.config.training import BoxFilters
from ovd.data.index import Ragged
from ovd.selftrain.filter import (
    best_of_groups,
    best_of_image,
    filter_labels,
    has_max_relative_area,
    has_min_score,
    has_min_side,
    paired_iou,
    text_in_caption,
)
from ovd.selftrain.labels import ShardLabels

TEXTS = ("umbrella", "cup of coffee", "cat", "snow man")
CAPTION = "Two red Umbrellas, and a cup of coffee."


Row = tuple[int, float, tuple[float, float, float, float]]


def shard_of(pairs: Sequence[Sequence[Row]]) -> ShardLabels:
    """Make a shard from the (text, score, box) rows of each pair; its images are 100 px high and 200 px wide."""
    rows = [row for pair in pairs for row in pair]
    offsets = np.cumsum([0, *map(len, pairs)], dtype=np.int64)
    return ShardLabels(
        keys=tuple(f"{row:06d}" for row in range(len(pairs))),
        reasons=(None,) * len(pairs),
        image_sizes=np.tile(np.array([[100, 200]], dtype=np.int64), (len(pairs), 1)),
        texts=TEXTS,
        queries=Ragged(
            np.tile(np.arange(len(TEXTS)), len(pairs)), np.arange(len(pairs) + 1, dtype=np.int64) * len(TEXTS)
        ),
        boxes=Ragged(np.array([box for _, _, box in rows], dtype=np.float32).reshape(-1, 4), offsets),
        scores=Ragged(np.array([score for _, score, _ in rows], dtype=np.float32), offsets),
        box_texts=Ragged(np.array([text for text, _, _ in rows], dtype=np.int64), offsets),
    )


BOX = (10.0, 10.0, 60.0, 50.0)
a_box = st.tuples(
    st.integers(0, len(TEXTS) - 1),
    st.sampled_from([0.1, 0.25, 0.5, 0.75]),  # few values, so that there are many ties
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(51, 200), st.integers(51, 100)),
)
# A strategy for rows by pair, not for shards: type checks in `shard_of` draw random numbers, which a strategy must not.
some_rows = st.lists(st.lists(a_box, max_size=6), max_size=4)
some_filters = st.builds(
    BoxFilters,
    keep=st.sampled_from(["top1", "top1_per_text", "one_to_one", "all"]),
    min_score=st.sampled_from([0.0, 0.25, 0.3, 1.0]),
    min_size_px=st.sampled_from([0.0, 20.0, 60.0]),
    max_relative_area=st.sampled_from([0.2, 0.5, 1.0]),
    caption_match=st.booleans(),
)


def captions_of(shard: ShardLabels) -> list[str]:
    """Return captions in turn: one that names the cat, one that names the two texts before it."""
    return [CAPTION if row % 2 else "a cat" for row in range(len(shard.keys))]


def kept_one_by_one(shard: ShardLabels, filters: BoxFilters) -> list[bool]:
    """Apply the same rules as loops over single boxes."""
    left = []
    for pair, caption in enumerate(captions_of(shard)):
        for row in range(shard.boxes.offsets[pair], shard.boxes.offsets[pair + 1]):
            x0, y0, x1, y1 = map(float, shard.boxes.values[row])
            shorter = min(x1 - x0, y1 - y0)
            text = TEXTS[shard.box_texts.values[row]]
            in_caption = text in (("umbrella", "cup of coffee") if caption == CAPTION else ("cat",))
            if (
                shard.scores.values[row] >= filters.min_score
                and shorter >= filters.min_size_px
                and (x1 - x0) * (y1 - y0) / 20_000 <= filters.max_relative_area
                and (in_caption or not filters.caption_match)
            ):
                left.append((-float(shard.scores.values[row]), row, pair, text))
    kept = [False] * len(shard.scores.values)
    taken: set[tuple] = set()
    boxes_of: defaultdict[int, list[list[float]]] = defaultdict(list)
    for _, row, pair, text in sorted(left):
        places = {"top1": (pair,), "top1_per_text": (pair, text), "one_to_one": (pair, text), "all": (pair, text, row)}
        place, box = places[filters.keep], shard.boxes.values[row].tolist()
        if place in taken:
            continue
        if filters.keep == "one_to_one":
            if any(overlap(box, other) > 0.5 for other in boxes_of[pair]):
                continue
            boxes_of[pair].append(box)
        taken.add(place)
        kept[row] = True
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    """Compute the IoU of two boxes xyxy."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return width * height / max(sum(areas) - width * height, 1e-9)


@pytest.mark.parametrize("stricter", [{}, {"min_score": 0.51}, {"min_size_px": 50.5}, {"max_relative_area": 0.24}])
def test_a_box_exactly_at_the_limits_passes(stricter):
    shard = shard_of([[(0, 0.5, (10.0, 0.0, 60.0, 100.0))]])
    limits = {"keep": "all", "min_score": 0.5, "min_size_px": 50.0, "max_relative_area": 0.25}
    mask, counts = filter_labels(shard, BoxFilters.model_validate(limits | stricter))
    assert mask.tolist() == [not stricter]
    assert [name for name, count in counts.items() if count] == (list(stricter) or ["kept"])


def test_a_text_whose_best_place_is_taken_gets_its_next_best():
    umbrella, cat, far = (10.0, 10.0, 30.0, 30.0), (11.0, 11.0, 31.0, 31.0), (60.0, 60.0, 90.0, 90.0)
    shard = shard_of([[(0, 0.9, umbrella), (2, 0.8, cat), (0, 0.7, far), (2, 0.3, far)]])
    mask, counts = filter_labels(shard, BoxFilters(keep="one_to_one"))
    assert mask.tolist() == [True, False, False, True]
    assert counts["one_to_one"] == 2


@pytest.mark.parametrize(("right", "is_kept"), [(50.0, True), (51.0, False)])
def test_boxes_are_in_one_place_above_an_iou_of_a_half(right: float, is_kept: bool):
    shard = shard_of([[(0, 0.9, (0.0, 0.0, 100.0, 40.0)), (2, 0.8, (0.0, 0.0, right, 40.0))]])
    assert filter_labels(shard, BoxFilters(keep="one_to_one"))[0].tolist() == [True, is_kept]


@given(some_rows, some_filters)
@settings(deadline=None)
def test_the_same_is_kept_as_by_looking_at_one_box_after_another(rows, filters):
    shard = shard_of(rows)
    mask, counts = filter_labels(shard, filters, captions=captions_of(shard))
    assert mask.tolist() == kept_one_by_one(shard, filters)
    assert sum(counts.values()) == len(shard.scores.values)
    assert counts["kept"] == int(mask.sum())
    assert min(counts.values()) >= 0


@given(some_rows, some_filters)
@settings(deadline=None)
def test_predicates_of_single_boxes_may_be_applied_in_any_order(rows, filters):
    shard = shard_of(rows)
    mask, _ = filter_labels(shard, filters.model_copy(update={"keep": "all", "caption_match": False}))
    backwards = (
        has_max_relative_area(shard, filters.max_relative_area)
        & has_min_side(shard, filters.min_size_px)
        & has_min_score(shard, filters.min_score)
    )
    assert (mask == backwards).all()


@given(some_rows)
@settings(deadline=None)
def test_top1_leaves_one_box_of_every_image_that_has_any(rows):
    shard = shard_of(rows)
    mask, _ = filter_labels(shard, BoxFilters())
    num_boxes = np.diff(shard.boxes.offsets)
    num_kept = np.bincount(shard.boxes.images_of_values()[mask], minlength=len(num_boxes))
    assert (num_kept == np.minimum(num_boxes, 1)).all()


def test_the_first_predicate_that_removes_a_box_counts_it():
    small, large = (0, 0, 5, 90), (0, 0, 200, 100)
    shard = shard_of([[(0, 0.9, large), (0, 0.8, BOX), (1, 0.7, BOX), (0, 0.1, small)], [], [(0, 0.9, small)]])
    mask, counts = filter_labels(shard, BoxFilters(min_score=0.5, min_size_px=8, max_relative_area=0.9))
    assert mask.tolist() == [False, True, False, False, False]
    assert counts == {"min_score": 1, "min_size_px": 1, "max_relative_area": 1, "top1": 1, "kept": 1}


def test_the_defaults_keep_a_box_that_fills_its_image_and_scores_nothing():
    assert filter_labels(shard_of([[(0, 0.0, (0, 0, 200, 100))]]), BoxFilters())[1]["kept"] == 1


def test_the_best_is_found_wherever_it_stands_and_the_first_of_equals_wins():
    shard = shard_of([[(0, 0.2, BOX), (1, 0.6, BOX), (2, 0.6, BOX)], [(0, 0.5, BOX)]])
    assert best_of_image(shard, np.ones(4, dtype=bool)).tolist() == [False, True, False, True]
    assert best_of_image(shard, np.array([True, False, False, False])).tolist() == [True, False, False, False]


@given(st.lists(st.tuples(st.integers(-2, 2), st.sampled_from([0.25, 0.5, 0.75]))), st.integers(0, 3))
@settings(deadline=None)
def test_the_best_of_each_group_are_those_of_sorting_it(members, count):
    groups = np.array([group for group, _ in members], dtype=np.int64)
    scores = np.array([score for _, score in members], dtype=np.float32)
    expected = set()
    for group in set(groups.tolist()):
        rows = [row for row in range(len(members)) if groups[row] == group]
        expected |= set(sorted(rows, key=lambda row: -scores[row])[:count])
    assert set(np.flatnonzero(best_of_groups(groups, scores, count=count)).tolist()) == expected


def test_boxes_are_compared_row_by_row():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 50, (2, 40, 2))
    boxes, others = np.concatenate([corners, corners + generator.uniform(0, 50, corners.shape)], 2).astype(np.float32)
    expected = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).diagonal()
    np.testing.assert_allclose(paired_iou(boxes, others), expected, rtol=1e-5)
    point = np.zeros((1, 4), np.float32)
    assert paired_iou(point, point).tolist() == [0]
    assert paired_iou(point[:0], point[:0]).tolist() == []


def test_texts_are_looked_for_as_whole_words_of_the_caption_in_any_number_and_case():
    shard = shard_of([[(text, 0.5, BOX) for text in (0, 1, 2, 3)]])
    assert text_in_caption(shard, [CAPTION]).tolist() == [True, True, False, False]
    assert text_in_caption(shard, ["snow, man; caterpillar, coffee cup, UMBRELLA"]).tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert text_in_caption(dataclasses.replace(shard, texts=("", "!", "a", "b")), [CAPTION]).tolist() == [
        False, False, True, False
    ]  # fmt: skip
    with pytest.raises(ValueError, match="2 captions for a shard of 1"):
        text_in_caption(shard, ["a", "b"])


def test_the_sense_of_a_name_is_not_looked_for():
    shard = dataclasses.replace(
        shard_of([[(text, 0.5, BOX) for text in (0, 1, 2, 3)]]), texts=("bow_(weapon)", "bus (vehicle)", "(x)", "cup")
    )
    assert text_in_caption(shard, ["an archer with a bow in a bus"]).tolist() == [True, True, False, False]


def test_a_text_with_brackets_in_its_middle_is_found_with_and_without_them():
    caption = "A dog (brown) runs"
    shard = dataclasses.replace(
        shard_of([[(text, 0.5, BOX) for text in (0, 1, 2)]]), texts=(caption, "dog runs", "runs")
    )
    assert text_in_caption(shard, [caption]).tolist() == [True, False, True]
    assert text_in_caption(shard, ["a dog runs"]).tolist() == [True, True, True]


@pytest.mark.parametrize("shard", [shard_of([]), shard_of([[], []])])
@pytest.mark.parametrize("keep", ["top1", "top1_per_text", "one_to_one", "all"])
def test_without_boxes_nothing_is_kept(shard, keep):
    mask, counts = filter_labels(shard, BoxFilters(keep=keep, caption_match=True), captions=captions_of(shard))
    assert len(mask) == 0
    assert set(counts.values()) == {0}


def test_a_shard_without_texts_has_none_in_its_captions():
    shard = dataclasses.replace(shard_of([[], []]), texts=())
    assert text_in_caption(shard, ["a cat", "a dog"]).tolist() == []


def test_matching_captions_needs_captions():
    with pytest.raises(ValueError, match="give those of the shard"):
        filter_labels(shard_of([[]]), BoxFilters(caption_match=True))
    with pytest.raises(ValueError, match="0 captions for a shard of 1"):
        filter_labels(shard_of([[]]), BoxFilters(caption_match=True), captions=[])
