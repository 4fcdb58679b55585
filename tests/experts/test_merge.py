"""The merged list of detections: the choice between two answers at one place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from ovd.experts.merge import SAME_PLACE_IOU, merge
from ovd.structures import Detections

PLACE, NEARLY, ELSEWHERE = [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]


def found(*rows: tuple[list, float, int]) -> Detections:
    if not rows:
        return Detections.empty()
    boxes, scores, classes = zip(*rows, strict=True)
    return Detections(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(classes))


def listed(item: Detections) -> list[tuple[float, int]]:
    return [(round(score, 3), row) for score, row in zip(item.scores.tolist(), item.classes.tolist(), strict=True)]


def merged(base: Detections, *experts: Detections, same_place: str = "base_stays", max_detections: int = 100):
    return merge(base, experts, same_place=same_place, nms_iou=0.6, max_detections=max_detections)  # type: ignore


@pytest.mark.parametrize(
    ("same_place", "sure_base", "sure_expert"),
    [
        ("base_stays", [(0.9, 0)], [(0.9, 1), (0.5, 0)]),
        ("surer", [(0.9, 0)], [(0.9, 1)]),
        ("both", [(0.9, 0), (0.5, 1)], [(0.9, 1), (0.5, 0)]),
    ],
)
def test_boxes_at_one_place(same_place, sure_base, sure_expert) -> None:
    base, expert = found((PLACE, 0.9, 0)), found((NEARLY, 0.5, 1))
    assert listed(merged(base, expert, same_place=same_place)[0]) == sure_base
    base, expert = found((PLACE, 0.5, 0)), found((NEARLY, 0.9, 1))
    assert listed(merged(base, expert, same_place=same_place)[0]) == sure_expert


@pytest.mark.parametrize(("shift", "is_one_place"), [(24, True), (25, True), (26, False), (32, False)])
def test_one_place_begins_at_an_iou_of_three_fifths(shift, is_one_place) -> None:
    """The boxes are 100 px wide, so their IoU is (100 - shift) / (100 + shift): 0.6 for 25 px."""
    base, expert = found(([0, 0, 100, 50], 0.9, 0)), found(([shift, 0, 100 + shift, 50], 0.5, 1))
    assert listed(merged(base, expert)[0]) == [(0.9, 0), *([] if is_one_place else [(0.5, 1)])]


def test_boxes_elsewhere_stay_and_the_best_come_first() -> None:
    base, expert = found((PLACE, 0.5, 0)), found((ELSEWHERE, 0.7, 1), ([80, 80, 90, 90], 0.2, 1))
    for same_place in ("base_stays", "surer", "both"):
        assert listed(merged(base, expert, same_place=same_place)[0]) == [(0.7, 1), (0.5, 0), (0.2, 1)]


def test_of_a_chain_of_answers_the_surest_is_decided_first() -> None:
    """The second expert's answer drops the base's, so nothing is left that would drop the first expert's."""
    base, first, second = found((PLACE, 0.5, 0)), found((NEARLY, 0.3, 1)), found((PLACE, 0.9, 2))
    assert listed(merged(base, first, second, same_place="surer")[0]) == [(0.9, 2), (0.3, 1)]
    assert listed(merged(base, first, same_place="surer")[0]) == [(0.5, 0)]


def test_the_cap_is_counted() -> None:
    kept, num_capped = merged(found((PLACE, 0.5, 0)), found((ELSEWHERE, 0.7, 1)), max_detections=1)
    assert listed(kept) == [(0.7, 1)]
    assert num_capped == 1


def test_a_class_of_two_experts_gives_one_box_at_a_place() -> None:
    first, second = found((PLACE, 0.8, 3)), found((NEARLY, 0.9, 3), (ELSEWHERE, 0.1, 3))
    assert listed(merged(Detections.empty(), first, second)[0]) == [(0.9, 3), (0.1, 3)]
    first, second = found((PLACE, 0.8, 3)), found((NEARLY, 0.9, 4))
    assert listed(merged(Detections.empty(), first, second)[0]) == [(0.9, 4), (0.8, 3)]


def test_nothing_found_by_anybody() -> None:
    kept, num_capped = merged(Detections.empty(), Detections.empty())
    assert len(kept.scores) == num_capped == 0


@st.composite
def detections(draw, classes: range) -> Detections:
    count = draw(st.integers(0, 8))
    rows = [
        (
            [x := draw(st.integers(0, 30)), y := draw(st.integers(0, 30)), x + 20, y + 20],
            draw(st.sampled_from([0.1, 0.25, 0.5, 0.75])),
            draw(st.sampled_from(classes)),
        )
        for _ in range(count)
    ]
    return found(*sorted(rows, key=lambda row: -row[1]))


@settings(deadline=None, max_examples=60)
@given(detections(range(3)), detections(range(3, 6)), detections(range(6, 9)))
def test_no_answer_of_the_base_changes_and_removing_an_expert_changes_no_other(base, one, other) -> None:
    both, _ = merged(base, one, other)
    of_base = both.classes < 3
    assert listed(Detections(both.boxes[of_base], both.scores[of_base], both.classes[of_base])) == listed(base)
    alone, _ = merged(base, one)
    without = both.classes < 6
    for name in ("boxes", "scores", "classes"):
        assert torch.equal(getattr(both, name)[without], getattr(alone, name))
    dropped = len(one.scores) + len(base.scores) - len(alone.scores)
    covered = (box_iou(base.boxes, one.boxes) >= SAME_PLACE_IOU) & (base.scores[:, None] >= one.scores)
    assert dropped == int(covered.any(dim=0).sum())


def test_a_box_that_was_dropped_drops_no_other() -> None:
    """A dropped box drops no other: the expert's box loses to the base's first box and does not take the second one's
    place."""
    base = found(([0, 0, 10, 10], 0.9, 0), ([0, 4, 10, 14], 0.7, 0))
    expert = found(([0, 2, 10, 12], 0.8, 1))
    assert (box_iou(base.boxes, expert.boxes) >= SAME_PLACE_IOU).all()
    assert box_iou(base.boxes[:1], base.boxes[1:]).item() < SAME_PLACE_IOU
    assert listed(merged(base, expert, same_place="surer")[0]) == [(0.9, 0), (0.7, 0)]


def test_another_expert_changes_only_what_both_have_names_for() -> None:
    """Another expert changes only classes that both have names for: two boxes of one class at nearly one place stay, as
    the first expert's own suppression kept them."""
    first = found((PLACE, 0.9, 5), (NEARLY, 0.8, 5), (PLACE, 0.7, 6))
    second = found((NEARLY, 0.6, 6))
    assert listed(merged(Detections.empty(), first)[0]) == [(0.9, 5), (0.8, 5), (0.7, 6)]
    assert listed(merged(Detections.empty(), first, second)[0]) == [(0.9, 5), (0.8, 5), (0.7, 6)]


def test_of_equal_scores_the_bases_comes_first() -> None:
    assert listed(merged(found((PLACE, 0.5, 0)), found((ELSEWHERE, 0.5, 1)))[0]) == [(0.5, 0), (0.5, 1)]


def test_classes_of_two_experts_do_not_suppress_each_other() -> None:
    first = found((PLACE, 0.8, 3), (ELSEWHERE, 0.7, 5))
    second = found((NEARLY, 0.9, 4), ([200, 200, 210, 210], 0.6, 3))
    expected = [(0.9, 4), (0.8, 3), (0.7, 5), (0.6, 3)]
    assert listed(merged(Detections.empty(), first, second)[0]) == expected
