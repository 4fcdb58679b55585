"""Compare pseudo-labels with the true objects of their pairs, where these are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd.data.annotations import load_annotations
from ovd.data.category import Category
from ovd.selftrain.labels import label_files, read_labels
from ovd.selftrain.ledger import check_labels, describe_capped, open_labeled_shards, read_ledger
from ovd.selftrain.quality import QualityRow, measure_quality, read_true_objects


@dataclass(frozen=True)
class LabelQuality:
    """Precision and recall of pseudo-labels."""

    rows: tuple[QualityRow, ...]
    num_pairs: int
    """Number of pairs that were compared."""
    num_left_out: int
    """Number of pairs whose true objects are not known."""
    capped: str
    """Sentence that counts the pairs whose labels lack boxes; empty if there are none."""


def label_quality(labels: Path, pairs: Path, annotations: Path | None, *, thresholds: Sequence[float]) -> LabelQuality:
    """Measure precision and recall of labels at each threshold.

    Args:
        labels: folder of label files.
        pairs: folder of the image-text shards that the labels belong to.
        annotations: LVIS file with the names' synonyms and frequencies.

    Raises:
        ValueError: labels are missing, damaged or of other shards, or the true objects of no pair are known.
    """
    files = label_files(labels)
    check_labels(files)
    shards = [read_labels(file) for file in files]
    labeled = open_labeled_shards(pairs, files)
    truth = [read_true_objects(labeled, labeled.positions(name)) for name in labeled.file_names]
    categories: tuple[Category, ...] = ()
    if annotations is not None:
        categories = load_annotations(annotations, None, format="lvis").categories
    rows = measure_quality(
        shards,
        truth,
        thresholds=thresholds,
        synonyms={category.name: category.synonyms for category in categories},
        rare=[category.name for category in categories if category.frequency == "r"],
        whole_captions=read_ledger(files[0]).settings.get("queries") == "caption",
    )
    num_pairs = sum(len(objects.captions) for objects in truth)
    num_known = sum(int(objects.is_known.sum()) for objects in truth)
    if not num_known:
        raise ValueError(f"{pairs}: no pair has true objects (`boxes` and `names` in its JSON)")
    return LabelQuality(rows, num_known, num_pairs - num_known, describe_capped(files))
