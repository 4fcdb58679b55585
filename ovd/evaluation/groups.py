"""Groups of classes that an evaluation reports separately: by LVIS frequency, or as a benchmark names them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from ovd.data.category import Category
from ovd.evaluation.report import ClassRow
from ovd.metric import is_known
from ovd.shapes import Bool

Group = Literal["all", "base", "rare", "common", "frequent"]
"""Groups of classes by LVIS frequency. For a detector that was trained on base classes, rare classes are novel."""
FREQUENCIES: dict[Group, tuple[str | None, ...]] = {
    "all": ("r", "c", "f", None),
    "base": ("c", "f"),
    "rare": ("r",),
    "common": ("c",),
    "frequent": ("f",),
}

NAME_OF_FREQUENCY: dict[str, Group] = {"r": "rare", "c": "common", "f": "frequent"}


def group_mask(group: Group, categories: Sequence[Category]) -> Bool[np.ndarray, " C"]:
    """Return a mask of the categories that belong to the group."""
    return np.array([category.frequency in FREQUENCIES[group] for category in categories], bool)


def rare_rows(categories: Sequence[Category]) -> frozenset[int]:
    """Return the rows of the rare categories; none if the annotation file has no frequencies."""
    return frozenset(np.flatnonzero(group_mask("rare", categories)).tolist())


def base_and_novel(
    categories: Sequence[Category], named: Mapping[str, Collection[str]] | None = None
) -> dict[str, Bool[np.ndarray, " C"]]:
    """Return masks of the categories in `all` and in each of the groups that separate base classes from others.

    Args:
        named: class names of each group (`DataFormat.groups`); by default the groups are `base` and `rare`.

    Returns:
        A mask for each group; groups without a class are left out, except `all`.
    """
    masks = {"all": np.ones(len(categories), bool)}
    if named is None:
        masks |= {group: group_mask(group, categories) for group in ("base", "rare")}
    else:
        masks |= {
            group: np.array([category.name in names for category in categories], bool) for group, names in named.items()
        }
    return {group: mask for group, mask in masks.items() if mask.any() or group == "all"}


def group_average_precision(classes: Sequence[ClassRow]) -> dict[Group, float]:
    """Compute the mean AP of each group's classes that have a true box, 0 to 1; `rare` is LVIS's APr, `all` is AP."""
    means: dict[Group, float] = {}
    for group, frequencies in FREQUENCIES.items():
        known = [row.AP for row in classes if (row.frequency or None) in frequencies and is_known(row.AP)]
        if known:
            means[group] = float(np.mean(known))
    return means
