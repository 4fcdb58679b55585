"""Selection of the training classes, LVIS-base without rare classes, and a check that no novel name leaks in."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ovd.data.category import Category
from ovd.data.index import AnnotationIndex, Ragged
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.shapes import Int64
from ovd.text.names import name_key

_NUM_NAMED = 20


class VocabularyLeak(ValueError):
    """Error for a novel name in the training vocabulary."""


def base_classes(index: AnnotationIndex) -> Int64[np.ndarray, " K"]:
    """Return the rows of the common and frequent classes.

    Raises:
        ValueError: a class has no frequency, or all classes are rare.
    """
    without = [category.name for category in index.categories if category.frequency is None]
    if without:
        raise ValueError(
            f"{index.path}: {format_count(len(without), 'class', 'classes')} without a frequency ({without[0]!r}), "
            "so base classes are not known"
        )
    rows = [row for row, category in enumerate(index.categories) if category.frequency != "r"]
    if index.categories and not rows:
        raise ValueError(
            f"{index.path}: all {len(index.categories)} classes are rare, so there is no base class to train "
            "on; correct their 'frequency', or set data.classes=all"
        )
    return np.array(rows, dtype=np.int64)


def keep_classes(index: AnnotationIndex, rows: Int64[np.ndarray, " K"]) -> AnnotationIndex:
    """Keep all images, but only the classes at `rows`; class rows[k] becomes row k.

    Objects, federated labels and categories of the other classes are removed. Every image stays, even without
    objects. Crowd regions of all classes stay, since they are ignored and not trained on.

    Raises:
        ValueError: a row is outside the vocabulary or occurs twice.
    """
    num_classes = len(index.categories)
    if len(np.unique(rows)) != len(rows) or ((rows < 0) | (rows >= num_classes)).any():
        raise ValueError(f"{index.path}: rows must be distinct and in 0..{num_classes - 1}")
    new_row = np.full(num_classes, -1, dtype=np.int64)
    new_row[rows] = np.arange(len(rows))

    def kept(labels: Ragged) -> Ragged:
        return Ragged(new_row[labels.values], labels.offsets).select(new_row[labels.values] >= 0)

    return replace(
        index,
        categories=tuple(index.categories[row] for row in rows.tolist()),
        boxes=index.boxes.select(new_row[index.classes.values] >= 0),
        classes=kept(index.classes),
        negative_classes=kept(index.negative_classes),
        not_exhaustive_classes=kept(index.not_exhaustive_classes),
    )


def check_no_leak(training: Sequence[Category], novel: Sequence[Category]) -> None:
    """Check that no name or synonym of a novel class is also a name or synonym of a training class.

    The comparison ignores case and treats underscores, brackets and spaces alike, but includes the words in brackets:
    "bow_(weapon)" and "bow_(decorative_ribbons)" are two names. Compared this way, LVIS v1's 337 rare classes share
    neither a name nor a synonym with its 866 base classes, which is why even a shared synonym is an error.

    Raises:
        VocabularyLeak: names are shared; the message lists them with their classes.
    """
    owner = {_normalized(name): category.name for category in training for name in _names(category)}
    leaks = {
        f"{name!r} of the novel class {category.name!r} is a name of the training class {owner[_normalized(name)]!r}"
        for category in novel
        for name in _names(category)
        if _normalized(name) in owner
    }
    if leaks:
        raise VocabularyLeak(
            f"{format_count(len(leaks), 'name')} of novel classes would be trained on; remove these classes or names: "
            f"{join_first(sorted(leaks), _NUM_NAMED, separator='; ')}"
        )


def split_lvis_base(index: AnnotationIndex) -> AnnotationIndex:
    """Return LVIS-base: all images, with annotations of common and frequent classes only.

    Raises:
        ValueError: a class has no frequency, or all classes are rare.
        VocabularyLeak: a rare class shares a name with a base class.
    """
    rows = base_classes(index)
    base = keep_classes(index, rows)
    check_no_leak(base.categories, [category for category in index.categories if category.frequency == "r"])
    return base


def _names(category: Category) -> tuple[str, ...]:
    return (category.name, *category.synonyms)


def _normalized(name: str) -> str:
    return " ".join(re.sub(r"[()]", " ", name_key(name)).split()).casefold()
