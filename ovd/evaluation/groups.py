"""Groups of classes that an evaluation reports separately: by LVIS's frequency, or as a benchmark names them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from ovd.data.category import Category
from ovd.evaluation.report import ClassRow
from ovd.metric import is_known
from ovd.shapes import Bool

Group = Literal["all", "base", "rare", "common", "frequent"]
"""Classes by LVIS's frequency. The rare ones are the novel ones, where a detector was trained on base classes."""
FREQUENCIES: dict[Group, tuple[str | None, ...]] = {
    "all": ("r", "c", "f", None),
    "base": ("c", "f"),
    "rare": ("r",),
    "common": ("c",),
    "frequent": ("f",),
}

NAME_OF_FREQUENCY: dict[str, Group] = {"r": "rare", "c": "common", "f": "frequent"}


def members_of(group: Group, categories: Sequence[Category]) -> Bool[np.ndarray, " C"]:
    """Which of the categories belong to the group."""
    return np.array([category.frequency in FREQUENCIES[group] for category in categories], bool)


def rare_rows(categories: Sequence[Category]) -> frozenset[int]:
    """Rows of the rare categories; none where the annotation file has no frequencies."""
    return frozenset(np.flatnonzero(members_of("rare", categories)).tolist())


def base_and_novel(
    categories: Sequence[Category], named: Mapping[str, Collection[str]] | None = None
) -> dict[str, Bool[np.ndarray, " C"]]:
    """Which categories belong to `all`, and to each of the groups that tell base classes from the others.

    Args:
        named: names of classes by group (`DataFormat.groups`); without them the groups are `base` and `rare`.

    Returns:
        Without groups that have no class.
    """
    masks = {"all": np.ones(len(categories), bool)}
    if named is None:
        masks |= {group: members_of(group, categories) for group in ("base", "rare")}
    else:
        masks |= {
            group: np.array([category.name in names for category in categories], bool) for group, names in named.items()
        }
    return {group: mask for group, mask in masks.items() if mask.any() or group == "all"}


def group_average_precision(classes: Sequence[ClassRow]) -> dict[Group, float]:
    """Mean AP of each group's classes that have a true box, 0 to 1; `rare` is LVIS's APr, `all` is AP."""
    means: dict[Group, float] = {}
    for group, frequencies in FREQUENCIES.items():
        known = [row.AP for row in classes if (row.frequency or None) in frequencies and is_known(row.AP)]
        if known:
            means[group] = float(np.mean(known))
    return means
