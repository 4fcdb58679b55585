"""Confusions of names: true boxes of a class, and the wrong names that they get."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovd.data.box_arrays import overlaps, to_xyxy
from ovd.data.category import Category
from ovd.data.truth import Truth
from ovd.evaluation.decisions import IOUS, Verdicts
from ovd.shapes import Int64

MAX_CONFUSIONS = 200
"""Maximum number of pairs of a class and a wrong name in a report."""


@dataclass(frozen=True)
class Confusion:
    """True boxes of a class that get the same wrong name."""

    name: str
    named: str
    """The wrong name."""
    count: int
    of: int
    """Number of true boxes of the class."""


def most_confused(named: Int64[np.ndarray, "N 2"], categories: Sequence[Category]) -> tuple[Confusion, ...]:
    """Return the `MAX_CONFUSIONS` most frequent wrong names; equally frequent ones in the order of the categories.

    Args:
        named: for each true box, the row of its class and the row of the name that it gets; -1 for none.
    """
    num_boxes = np.bincount(named[:, 0], minlength=len(categories))
    wrong = named[(named[:, 0] != named[:, 1]) & (named[:, 1] >= 0)]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS]
    return tuple(
        Confusion(categories[row].name, categories[name].name, count, int(num_boxes[row]))
        for (row, name), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    )


def names_at_true_boxes(verdicts: Verdicts, truth: Truth) -> Int64[np.ndarray, "R 2"]:
    """Return the name that the reported detections give to each true box that counts, in the form for `most_confused`.

    A found box has its own name. A missed box has the name of the best wrong detection that overlaps it at IoU 0.5, or
    none; a detection that is right about another box is not wrong.

    Args:
        truth: truth that the verdicts were made with.
    """
    own = truth.category_rows(truth.category_ids[verdicts.true_rows])
    names = np.where(verdicts.is_found, own, -1)
    missed = verdicts.true_rows[~verdicts.is_found]
    wrong = verdicts.reported.take(~verdicts.is_right)
    image = truth.image_rows(wrong.image_ids)
    true_image = truth.image_rows(truth.image_ids[missed])
    row_of_missed = np.flatnonzero(~verdicts.is_found)
    rows, true, _ = overlaps(
        true_image, to_xyxy(truth.boxes_xywh[missed]),
        image, to_xyxy(wrong.boxes_xywh), wrong.scores, min_iou=IOUS[0],
    )  # fmt: skip
    order = np.argsort(wrong.scores[rows], kind="stable")  # ascending: the best is written last
    rows, true = rows[order], true[order]
    names[row_of_missed[true]] = truth.category_rows(wrong.category_ids[rows])
    return np.stack([own, names], axis=1).astype(np.int64)
