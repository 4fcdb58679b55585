"""Quality of a teacher's labels on pairs whose true objects are known.

A label is correct in place if it overlaps a true object with an IoU of at least 0.5, and correct in name if its text
also names that object. Names with and without a sense in brackets are the same ("bow" and "bow (weapon)"); names with
different senses are not. Unlike in average precision, several labels may be correct for one object, since duplicates do
not harm training.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from ovd.choices import Keep
from ovd.config.training import BoxFilters
from ovd.data.box_arrays import overlaps
from ovd.data.formats.json_object import is_number
from ovd.data.formats.table import LARGEST_COORDINATE
from ovd.data.index import Ragged
from ovd.data.pairs.tar import PairShards
from ovd.selftrain.filter import filter_labels
from ovd.selftrain.labels import ShardLabels
from ovd.selftrain.words import normalize_text, strip_sense

MIN_IOU = 0.5


@dataclass(frozen=True)
class TrueObjects:
    """The true objects and the captions of a shard's N pairs."""

    is_known: Bool[np.ndarray, " N"]
    """False for pairs whose true objects are unknown; they are left out, with their labels."""
    boxes: Ragged
    """The K true boxes of all pairs, xyxy in pixels of the pair's image, float32."""
    names: tuple[str, ...]
    """Names of all K objects."""
    captions: tuple[str, ...]


@dataclass(frozen=True)
class QualityRow:
    """Precision and recall of the labels kept by one `keep` rule and score threshold; None without labels or objects.

    The `_in_name` fields are also None if the texts are whole captions, which do not name single objects.
    """

    keep: Keep
    min_score: float
    num_labels: int
    precision_in_place: float | None
    precision_in_name: float | None
    num_objects: int
    recall_in_place: float | None
    recall_in_name: float | None
    num_rare_objects: int
    rare_recall_in_place: float | None
    rare_recall_in_name: float | None


@dataclass(frozen=True)
class _Hits:
    """All H pairs of a label and a true object of a shard with an IoU of at least `MIN_IOU`."""

    labels: Int64[np.ndarray, " H"]
    objects: Int64[np.ndarray, " H"]
    is_named: Bool[np.ndarray, " H"]
    """Whether the label's text names the object."""


@dataclass(frozen=True)
class _Counts:
    """Numbers of kept and correct labels, and of the true objects that they find, in place or also in name."""

    labels: int = 0
    correct_in_place: int = 0
    correct_in_name: int = 0
    found_in_place: int = 0
    """Number of objects that a kept label overlaps."""
    found_in_name: int = 0
    rare_in_place: int = 0
    """Number of rare objects among them."""
    rare_in_name: int = 0

    @classmethod
    def of(cls, hits: _Hits, is_kept: Bool[np.ndarray, " M"], is_rare: Bool[np.ndarray, " K"]) -> "_Counts":
        """Count the hits of a shard's kept labels, of M, and its K objects."""
        in_place = is_kept[hits.labels]
        in_name = in_place & hits.is_named
        found, found_with_name = np.unique(hits.objects[in_place]), np.unique(hits.objects[in_name])
        return cls(
            labels=int(is_kept.sum()),
            correct_in_place=len(np.unique(hits.labels[in_place])),
            correct_in_name=len(np.unique(hits.labels[in_name])),
            found_in_place=len(found),
            found_in_name=len(found_with_name),
            rare_in_place=int(is_rare[found].sum()),
            rare_in_name=int(is_rare[found_with_name].sum()),
        )

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(_Counts)))


def read_true_objects(pairs: PairShards, positions: Sequence[int]) -> TrueObjects:
    """Read true objects from the pairs' info members: `boxes` (xyxy in pixels) and `names`.

    Raises:
        ValueError: an info member has different numbers of boxes and names, a box that is not four numbers with
            absolute values below 1e9 or whose sides are in the wrong order, or a name that is not a string.
    """
    is_known, counts, captions = [], [], []
    boxes: list[list[float]] = []
    names: list[str] = []
    for position in positions:
        pair = pairs[position]
        captions.append(pair.caption)
        is_known.append("boxes" in pair.info and "names" in pair.info)
        its_boxes, its_names = (pair.info["boxes"], pair.info["names"]) if is_known[-1] else ([], [])
        if problem := _problem_of(its_boxes, its_names):
            raise ValueError(
                f"{pairs.directory}/{pairs.location(position)}: its JSON has boxes {its_boxes} and names {its_names}; "
                f"{problem}"
            )
        counts.append(len(its_boxes))
        boxes += its_boxes
        names += its_names
    return TrueObjects(
        is_known=np.array(is_known, dtype=bool),
        boxes=Ragged.from_rows(np.array(boxes, dtype=np.float32).reshape(-1, 4), counts),
        names=tuple(names),
        captions=tuple(captions),
    )


def _problem_of(boxes: Any, names: Any) -> str | None:
    """Describe the fault of an info member's lists of boxes and names; return None if they are valid."""
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        return "give two lists of the same length"
    for number, box in enumerate(boxes, start=1):
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            return f"box {number} is {box}: give four finite numbers"
        if not all(is_number(value, LARGEST_COORDINATE) for value in box):
            return f"box {number} is {box}: give pixels, each less than {LARGEST_COORDINATE:,.0f}"
        if box[2] < box[0] or box[3] < box[1]:
            return f"box {number} is {box}: give the left, top, right and bottom side, not width and height"
    wrong = next((name for name in names if not isinstance(name, str)), None)
    return None if wrong is None else f"{wrong!r} is not a string; give names"


def _is_finite(value: Any) -> bool:
    """Whether a JSON value is a finite number, however large."""
    return type(value) in (int, float) and abs(value) < math.inf


def measure_quality(
    shards: Sequence[ShardLabels],
    truth: Sequence[TrueObjects],
    *,
    thresholds: Sequence[float],
    keeps: Sequence[Keep] = ("top1", "top1_per_text", "one_to_one", "all"),
    synonyms: Mapping[str, Collection[str]] | None = None,
    rare: Collection[str] = (),
    whole_captions: bool = False,
) -> tuple[QualityRow, ...]:
    """Measure precision and recall of the labels that each `keep` rule keeps at each score threshold.

    Args:
        shards, truth: labels and true objects of the same pairs, in the same order.
        synonyms: other names of a true object, by its name.
        rare: names of the true objects that are also reported separately.
        whole_captions: whether the labels' texts are whole captions, which do not name single objects.
    """
    names_of = {normalize_text(name): tuple(others) for name, others in (synonyms or {}).items()}
    rare_names = {normalize_text(name) for name in rare}
    rules = [(keep, threshold) for keep in keeps for threshold in thresholds]
    counts = [_Counts()] * len(rules)
    num_objects = num_rare_objects = 0
    for labels, objects in zip(shards, truth, strict=True):
        names = [normalize_text(name) for name in objects.names]
        is_rare = np.array([name in rare_names for name in names], dtype=bool)
        num_objects += len(names)
        num_rare_objects += int(is_rare.sum())
        hits = _hits(labels, objects, names_of)
        counts_at_all = objects.is_known[labels.boxes.images_of_values()]
        for rule, (keep, threshold) in enumerate(rules):
            is_kept, _ = filter_labels(labels, BoxFilters(keep=keep, min_score=threshold))
            counts[rule] += _Counts.of(hits, is_kept & counts_at_all, is_rare)
    can_name = not whole_captions

    def share(count: int, total: int, is_meaningful: bool = True) -> float | None:
        return count / total if total and is_meaningful else None

    return tuple(
        QualityRow(
            keep=keep,
            min_score=threshold,
            num_labels=counted.labels,
            precision_in_place=share(counted.correct_in_place, counted.labels),
            precision_in_name=share(counted.correct_in_name, counted.labels, can_name),
            num_objects=num_objects,
            recall_in_place=share(counted.found_in_place, num_objects),
            recall_in_name=share(counted.found_in_name, num_objects, can_name),
            num_rare_objects=num_rare_objects,
            rare_recall_in_place=share(counted.rare_in_place, num_rare_objects),
            rare_recall_in_name=share(counted.rare_in_name, num_rare_objects, can_name),
        )
        for (keep, threshold), counted in zip(rules, counts, strict=True)
    )


def format_quality(rows: Sequence[QualityRow]) -> str:
    """Format rows as a Markdown table, in percent; "-" for None."""
    columns = {
        "keep": [row.keep for row in rows],
        "score from": [f"{row.min_score:g}" for row in rows],
        "labels": [str(row.num_labels) for row in rows],
        "right in place": [_percent(row.precision_in_place) for row in rows],
        "and in name": [_percent(row.precision_in_name) for row in rows],
        "objects": [str(row.num_objects) for row in rows],
        "found in place": [_percent(row.recall_in_place) for row in rows],
        "found with name": [_percent(row.recall_in_name) for row in rows],
        "rare objects": [str(row.num_rare_objects) for row in rows],
        "rare found in place": [_percent(row.rare_recall_in_place) for row in rows],
        "rare found with name": [_percent(row.rare_recall_in_name) for row in rows],
    }
    lines = [columns.keys(), ["---", *["---:"] * (len(columns) - 1)], *zip(*columns.values(), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _hits(labels: ShardLabels, objects: TrueObjects, names_of: Mapping[str, Collection[str]]) -> _Hits:
    """Find the labels and true objects of the same pair that overlap, and compare their names.

    Args:
        names_of: synonyms by normalized name.
    """
    label_rows, object_rows, _ = overlaps(
        objects.boxes.images_of_values(), objects.boxes.values,
        labels.boxes.images_of_values(), labels.boxes.values, labels.scores.values, min_iou=MIN_IOU,
    )  # fmt: skip

    @cache
    def is_name(text: str, name: str) -> bool:
        return any(_are_same(text, other) for other in (name, *names_of.get(normalize_text(name), ())))

    is_named = [
        is_name(labels.texts[text], objects.names[row])
        for text, row in zip(labels.box_texts.values[label_rows].tolist(), object_rows.tolist(), strict=True)
    ]
    return _Hits(label_rows, object_rows, np.array(is_named, dtype=bool))


def _are_same(one: str, other: str) -> bool:
    """Whether two names are the same, apart from a sense in brackets that only one of them has."""
    first, second = normalize_text(one), normalize_text(other)
    return first == second or first == normalize_text(strip_sense(other)) or second == normalize_text(strip_sense(one))
