"""The classes and texts that are scored in a step, and those that count as absent from an image."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.choices import NegativeRule
from ovd.model import federated
from ovd.model.federated import class_mask, required_classes, sample_class_ids, text_mask
from ovd.structures import Targets

NUM_CLASSES = 30


def make_targets(classes: list[int], negative: list[int], not_exhaustive: list[int], image_texts: list[int]) -> Targets:
    return replace(
        Targets.empty(),
        boxes=torch.zeros(len(classes), 4),
        classes=torch.tensor(classes, dtype=torch.int64),
        negative_classes=torch.tensor(negative, dtype=torch.int64),
        not_exhaustive_classes=torch.tensor(not_exhaustive, dtype=torch.int64),
        image_texts=torch.tensor(image_texts, dtype=torch.int64),
    )


rows = st.lists(st.integers(0, NUM_CLASSES - 1), max_size=5)
batches = st.lists(st.builds(make_targets, rows, rows, rows, rows), min_size=1, max_size=4).map(tuple)
rules = st.sampled_from(["sampled", "strict", "all"])
image_counts = st.lists(st.integers(0, 1000), min_size=NUM_CLASSES, max_size=NUM_CLASSES).map(torch.tensor)


@settings(deadline=None)
@given(
    targets=batches,
    counts=image_counts,
    negatives=rules,
    sampled_classes=st.integers(0, 40),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_sampled_rows(
    targets: tuple[Targets, ...],
    counts: torch.Tensor,
    negatives: NegativeRule,
    sampled_classes: int,
    power: float,
    seed: int,
) -> None:
    required = required_classes(targets, negatives=negatives)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "SAMPLING_POWER", power)
        sampled, again = (
            sample_class_ids(
                required,
                counts,
                negatives=negatives,
                sampled_classes=sampled_classes,
                generator=torch.Generator().manual_seed(seed),
            )
            for _ in range(2)
        )
    assert torch.equal(sampled, again)
    assert sampled.dtype == torch.int64
    assert sampled.tolist() == sorted(set(sampled.tolist()))

    positives = {c for t in targets for c in t.classes.tolist()}
    drawn = set(sampled.tolist()) - positives
    assert positives <= set(sampled.tolist())
    if negatives == "all":
        assert sampled.tolist() == list(range(NUM_CLASSES))
        return
    verified = {c for t in targets for c in t.negative_classes.tolist()} - positives
    drawable = {c for c in range(NUM_CLASSES) if counts[c] > 0} - positives
    allowed, num_expected = (
        (verified, len(verified)) if negatives == "strict" else (drawable, min(sampled_classes, len(drawable)))
    )
    if not positives and num_expected == 0:  # at least one row is always scored
        assert sampled.tolist() == [int(counts.argmax())]
        return
    assert drawn <= allowed
    assert len(drawn) == num_expected


@settings(deadline=None)
@given(
    targets=batches,
    counts=image_counts,
    negatives=rules,
    excluded=st.sets(st.integers(0, NUM_CLASSES - 1), max_size=NUM_CLASSES - 1),
    sampled_classes=st.integers(0, 40),
)
def test_classes_that_are_left_out_are_never_scored_and_all_others_are_as_before(
    targets: tuple[Targets, ...],
    counts: torch.Tensor,
    negatives: NegativeRule,
    excluded: set[int],
    sampled_classes: int,
) -> None:
    required = required_classes(targets, negatives=negatives)
    mask = torch.tensor([row in excluded for row in range(NUM_CLASSES)])
    sampled = sample_class_ids(
        required,
        counts,
        negatives=negatives,
        sampled_classes=sampled_classes,
        excluded=mask,
        generator=torch.Generator().manual_seed(0),
    ).tolist()
    others = set(range(NUM_CLASSES)) - excluded
    assert sampled == sorted(set(sampled))
    assert set(sampled) <= others
    if negatives == "all":
        assert set(sampled) == others
        return
    wanted = set(required.tolist()) - excluded
    drawable = {row for row in others - wanted if counts[row] > 0} if negatives == "sampled" else set()
    num_drawn = min(sampled_classes, len(drawable))
    if not wanted and num_drawn == 0:  # at least one row is always scored
        assert len(sampled) == 1
        assert counts[sampled[0]] == max(int(counts[row]) for row in others)
        return
    assert wanted <= set(sampled)
    assert set(sampled) - wanted <= drawable
    assert len(sampled) == len(wanted) + num_drawn


@pytest.mark.parametrize("negatives", ["sampled", "strict"])
@pytest.mark.parametrize(("counts", "expected"), [([9, 5, 3], 1), ([9, 0, 0], 1), ([0, 0, 7], 2)])
def test_a_batch_without_objects_scores_the_most_frequent_class_that_is_not_left_out(
    negatives: NegativeRule, counts: list[int], expected: int
) -> None:
    found = sample_class_ids(
        torch.arange(0),
        torch.tensor(counts),
        negatives=negatives,
        sampled_classes=0,
        excluded=torch.tensor([True, False, False]),
        generator=torch.Generator(),
    )
    assert found.tolist() == [expected]


def test_draws_follow_the_root_of_the_image_count() -> None:
    counts = torch.tensor([100, 400, 1600, 0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat(
        [
            sample_class_ids(torch.arange(0), counts, negatives="sampled", sampled_classes=1, generator=generator)
            for _ in range(3000)
        ]
    )
    frequency = torch.bincount(draws, minlength=4) / 3000
    torch.testing.assert_close(frequency, torch.tensor([1, 2, 4, 0]) / 7, atol=0.03, rtol=0)


@settings(deadline=None)
@given(targets=batches, class_ids=st.sets(st.integers(0, NUM_CLASSES - 1)).map(sorted), negatives=rules)
def test_mask_equals_the_rule_in_words(
    targets: tuple[Targets, ...], class_ids: list[int], negatives: NegativeRule
) -> None:
    mask = class_mask(targets, torch.tensor(class_ids, dtype=torch.int64), negatives=negatives)
    assert mask.shape == (len(targets), len(class_ids))
    for image, image_mask in zip(targets, mask.tolist(), strict=True):
        for row, counts in zip(class_ids, image_mask, strict=True):
            exhaustive = row not in image.not_exhaustive_classes.tolist() + image.image_texts.tolist()
            verified = row in image.classes.tolist() + image.negative_classes.tolist()
            assert counts == {"all": True, "sampled": exhaustive, "strict": exhaustive and verified}[negatives]


def test_a_text_near_a_class_that_may_be_there_is_no_negative() -> None:
    rows = torch.eye(6)
    image, there, unsaid = make_targets([], [], [], []), make_targets([2], [], [], []), make_targets([], [], [2], [])
    texts = torch.nn.functional.normalize(torch.stack([rows[2], rows[5] + 0.1 * rows[4]]), dim=1)
    assert text_mask((image, there, unsaid), texts, rows)[:, 0].tolist() == [True, False, False]


def test_a_text_is_no_negative_where_one_of_the_nearest_classes_has_a_box() -> None:
    rows, texts = torch.eye(8)[:5], torch.tensor([[1.0, 0.9, 0.8, 0, 0, 0, 0, 0]])
    second, fourth = make_targets([1], [], [], []), make_targets([3], [], [], [])
    assert text_mask((second, fourth), texts, rows).tolist() == [[False], [True]]
    assert text_mask((second,), texts, rows[:2]).tolist() == [[False]]  # with fewer classes than the rule compares
