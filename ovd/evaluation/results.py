"""Detections of a whole data set as columns, and capped.

Boxes stay xywh float64 here, as results files and the metric engines have them, so that a results file and the
detections it was written from give the same figures to the last bit.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ovd.shapes import Bool, Float64, Int64


@dataclass(frozen=True)
class Results:
    """N detections of any number of images. Rows keep the order they came in: equal scores are ranked by it."""

    image_ids: Int64[np.ndarray, " N"]
    category_ids: Int64[np.ndarray, " N"]
    """Category ids of the annotation file, not rows of a vocabulary."""
    boxes_xywh: Float64[np.ndarray, "N 4"]
    scores: Float64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Int64[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> "Results":
        """The rows that an index or a mask picks."""
        return Results(self.image_ids[rows], self.category_ids[rows], self.boxes_xywh[rows], self.scores[rows])


def concatenate(parts: Collection[Results]) -> Results:
    """One `Results` of many, in their order; of none, an empty one."""
    if len(parts) == 1:
        return next(iter(parts))
    if not parts:
        return Results(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
    return Results(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.boxes_xywh for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def limit_per_image(results: Results, limit: int) -> Results:
    """Each image's `limit` best detections over all classes; ties go to the earlier row, as in lvis-api."""
    return _best_of_each(results.image_ids, results, limit)


def limit_per_class(results: Results, limit: int) -> Results:
    """Each class's `limit` best detections over the whole data set (fixed AP, arXiv:2102.01066, section 4.2)."""
    return _best_of_each(results.category_ids, results, limit)


def _best_of_each(groups: Int64[np.ndarray, " N"], results: Results, limit: int) -> Results:
    """Every group's `limit` highest scores, in the order of their rows."""
    _, counts = np.unique(groups, return_counts=True)
    if counts.max(initial=0) <= limit:  # as in most results files, and many times faster than to sort
        return results
    order = np.lexsort((-results.scores, groups))  # stable: equal scores stay in row order
    ordered = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return results.take(np.sort(order[rank < limit]))
