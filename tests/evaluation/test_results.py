"""Detections as columns: caps per image and per class."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ovd.evaluation.results import Results, limit_per_class, limit_per_image


@given(
    groups_and_scores=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.1, 0.2, 0.3])), max_size=40),
    limit=st.integers(0, 12),
)
def test_caps_keep_the_best_of_each_group_and_earlier_rows_of_a_tie(groups_and_scores, limit):
    groups = np.array([group for group, _ in groups_and_scores], np.int64)
    scores = np.array([score for _, score in groups_and_scores], np.float64)
    num = len(groups)
    row_numbers = np.repeat(np.arange(num, dtype=np.float64)[:, None], 4, axis=1)
    others = np.arange(num, dtype=np.int64)
    expected = sorted(
        row
        for group in set(groups.tolist())
        for row in sorted(np.flatnonzero(groups == group).tolist(), key=lambda row: -scores[row])[:limit]
    )
    by_image = limit_per_image(Results(groups, others, row_numbers, scores), limit)
    by_class = limit_per_class(Results(others, groups, row_numbers, scores), limit)
    assert by_image.boxes_xywh[:, 0].tolist() == expected
    assert by_class.boxes_xywh[:, 0].tolist() == expected
