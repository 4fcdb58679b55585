import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.model.federated import Rule, class_mask, needed_classes, sample_class_rows
from ovd.structures import Targets

NUM_CLASSES = 30


def make_targets(classes: list[int], negative: list[int], not_exhaustive: list[int]) -> Targets:
    return Targets(
        boxes=torch.zeros(len(classes), 4),
        classes=torch.tensor(classes, dtype=torch.int64),
        negative_classes=torch.tensor(negative, dtype=torch.int64),
        not_exhaustive_classes=torch.tensor(not_exhaustive, dtype=torch.int64),
        ignore_boxes=torch.zeros(0, 4),
    )


rows = st.lists(st.integers(0, NUM_CLASSES - 1), max_size=5)
batches = st.lists(st.builds(make_targets, rows, rows, rows), min_size=1, max_size=4).map(tuple)
rules = st.sampled_from(["sampled", "strict", "all"])
image_counts = st.lists(st.integers(0, 1000), min_size=NUM_CLASSES, max_size=NUM_CLASSES).map(torch.tensor)


@settings(deadline=None)
@given(
    targets=batches,
    counts=image_counts,
    rule=rules,
    num_sampled=st.integers(0, 40),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_sampled_rows(
    targets: tuple[Targets, ...], counts: torch.Tensor, rule: Rule, num_sampled: int, power: float, seed: int
) -> None:
    needed = needed_classes(targets, rule=rule)
    sampled = sample_class_rows(
        needed,
        counts,
        rule=rule,
        num_sampled=num_sampled,
        power=power,
        generator=torch.Generator().manual_seed(seed),
    )
    again = sample_class_rows(
        needed,
        counts,
        rule=rule,
        num_sampled=num_sampled,
        power=power,
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.equal(sampled, again)
    assert sampled.dtype == torch.int64
    assert sampled.tolist() == sorted(set(sampled.tolist()))

    positives = {c for t in targets for c in t.classes.tolist()}
    drawn = set(sampled.tolist()) - positives
    assert positives <= set(sampled.tolist())
    if rule == "all":
        assert sampled.tolist() == list(range(NUM_CLASSES))
        return
    negatives = {c for t in targets for c in t.negative_classes.tolist()} - positives
    drawable = {c for c in range(NUM_CLASSES) if counts[c] > 0} - positives
    allowed, num_expected = (
        (negatives, len(negatives)) if rule == "strict" else (drawable, min(num_sampled, len(drawable)))
    )
    if not positives and num_expected == 0:  # never no row at all
        assert sampled.tolist() == [int(counts.argmax())]
        return
    assert drawn <= allowed
    assert len(drawn) == num_expected


def test_draws_follow_the_root_of_the_image_count() -> None:
    counts = torch.tensor([100, 400, 1600, 0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat(
        [
            sample_class_rows(torch.arange(0), counts, rule="sampled", num_sampled=1, generator=generator)
            for _ in range(3000)
        ]
    )
    frequency = torch.bincount(draws, minlength=4) / 3000
    torch.testing.assert_close(frequency, torch.tensor([1, 2, 4, 0]) / 7, atol=0.03, rtol=0)


@settings(deadline=None)
@given(targets=batches, class_rows=st.sets(st.integers(0, NUM_CLASSES - 1)).map(sorted), rule=rules)
def test_mask_equals_the_rule_in_words(targets: tuple[Targets, ...], class_rows: list[int], rule: Rule) -> None:
    mask = class_mask(targets, torch.tensor(class_rows, dtype=torch.int64), rule=rule)
    assert mask.shape == (len(targets), len(class_rows))
    for image, image_mask in zip(targets, mask.tolist(), strict=True):
        for row, counts in zip(class_rows, image_mask, strict=True):
            exhaustive = row not in image.not_exhaustive_classes.tolist()
            verified = row in image.classes.tolist() + image.negative_classes.tolist()
            assert counts == {"all": True, "sampled": exhaustive, "strict": exhaustive and verified}[rule]
