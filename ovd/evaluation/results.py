"""Detections of a whole data set in columns, and limits on their number per image or per class.

Boxes stay xywh float64, the form of results files and metric engines, so that a results file and the detections that it
was written from give bit-identical figures.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ovd.shapes import Bool, Float64, Int64


@dataclass(frozen=True)
class Results:
    """N detections in any number of images. Rows keep their order, which ranks detections of equal score."""

    image_ids: Int64[np.ndarray, " N"]
    category_ids: Int64[np.ndarray, " N"]
    """Category ids of the annotation file, not rows of a vocabulary."""
    boxes_xywh: Float64[np.ndarray, "N 4"]
    scores: Float64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Int64[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> "Results":
        """Return the rows that an index array or a mask selects."""
        return Results(self.image_ids[rows], self.category_ids[rows], self.boxes_xywh[rows], self.scores[rows])


def concatenate(parts: Collection[Results]) -> Results:
    """Concatenate results in their order; without any, return an empty `Results`."""
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
    """Keep each image's `limit` best detections over all classes; ties go to the earlier row, as in lvis-api."""
    return _best_of_each(results.image_ids, results, limit)


def limit_per_class(results: Results, limit: int) -> Results:
    """Keep each class's `limit` best detections over the whole data set (fixed AP, arXiv:2102.01066, section 4.2)."""
    return _best_of_each(results.category_ids, results, limit)


def _best_of_each(groups: Int64[np.ndarray, " N"], results: Results, limit: int) -> Results:
    """Keep the detections with each group's `limit` highest scores, in row order."""
    _, counts = np.unique(groups, return_counts=True)
    if counts.max(initial=0) <= limit:  # true of most results files, and many times faster than sorting
        return results
    order = np.lexsort((-results.scores, groups))  # stable: equal scores stay in row order
    ordered = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return results.take(np.sort(order[rank < limit]))
