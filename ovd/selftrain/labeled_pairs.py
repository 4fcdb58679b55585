"""Image-text pairs with a teacher's labels as training data, behind the same interface as annotated data sets."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ovd.config.training import BoxFilters
from ovd.data.index import ImageRecord, Labels
from ovd.data.pairs.tar import PairShards
from ovd.distributed import is_main
from ovd.format_count import format_count
from ovd.progress import progress
from ovd.selftrain.filter import best_of_groups, filter_labels
from ovd.selftrain.filtered_labels import FilteredLabels
from ovd.selftrain.labels import ShardLabels, read_labels
from ovd.selftrain.ledger import read_ledger
from ovd.text.pair_texts import PairTexts


def read_filtered_labels(
    files: Sequence[Path], filters: BoxFilters, shards: PairShards
) -> tuple[list[FilteredLabels], Counter[str]]:
    """Read and filter label files one after another.

    The texts of a pair are its queries, which are from its caption. If the queries were the same classes for all images
    (`queries: classes` in the ledger), the texts of a pair are those of its boxes that pass the filters: otherwise the
    whole vocabulary would belong to every pair, and no text could be a negative.

    Args:
        files: the label files (`label_files`).
        shards: the shards of the files (`open_labeled_shards`).

    Returns:
        The labels left of each file, and the number of boxes by the filter that removed them, and under "kept".
    """
    kept, counts, num_cut = [], Counter[str](), 0
    settings = read_ledger(files[0]).settings if files else {}  # the same for all files
    only_box_texts, max_boxes = settings.get("queries") == "classes", settings.get("max_boxes")
    for file, name in progress(zip(files, shards.file_names, strict=True), len(files), "labels"):
        labels = read_labels(file)
        captions = None
        if filters.caption_match:
            captions = [shards.caption(position) for position in shards.positions(name)]
        mask, of_shard = filter_labels(labels, filters, captions=captions)
        kept.append(FilteredLabels.from_labels(labels, mask, only_box_texts=only_box_texts))
        counts.update(of_shard)
        num_cut += count_truncated_pairs(labels, filters.min_score, max_boxes=max_boxes)
    if num_cut > 0 and is_main():
        print(
            f"{shards.directory}: boxes above data.pairs.min_score may be missing in {format_count(num_cut, 'pair')}, "
            "since the number of labels per pair is limited (ovd label-pairs --max-boxes)"
        )
    return kept, counts


def count_truncated_pairs(labels: ShardLabels, min_score: float, *, max_boxes: int | None) -> int:
    """Count the pairs whose labels may lack boxes of at least `min_score`, since the number of boxes was limited.

    Args:
        max_boxes: limit of the boxes per image, beyond which only the best box of each text is kept; None if unknown.
    """
    if max_boxes is None:
        return 0
    offsets = labels.boxes.offsets
    last = offsets[:-1][np.diff(offsets) >= max_boxes] + max_boxes - 1  # the last within the limit, best first
    return int((labels.scores.values[last] >= min_score).sum())


def limit_boxes_per_text(
    kept: Sequence[FilteredLabels], texts: PairTexts, count: int
) -> tuple[list[FilteredLabels], int]:
    """Keep at most `count` boxes per text over all pairs, those with the highest scores; of equal scores, the first.

    Returns:
        The remaining labels, and the number of boxes removed.
    """
    ids = [np.zeros(0, np.int64), *(texts.ids(number)[labels.box_texts.values] for number, labels in enumerate(kept))]
    scores = [np.zeros(0, np.float32), *(labels.scores.values for labels in kept)]
    is_best = best_of_groups(np.concatenate(ids), np.concatenate(scores), count=count)
    masks = np.split(is_best, np.cumsum([len(labels.scores.values) for labels in kept]))
    left = [labels if mask.all() else labels.select(mask) for labels, mask in zip(kept, masks, strict=False)]
    return left, len(is_best) - int(is_best.sum())


class LabeledPairs:
    """The pairs that have a label to train on, in the order of their shards; an `ImageSource` of the loader.

    The classes of a record are ids of texts; its `image_texts` are the texts of the pair (`read_filtered_labels`). An
    image may show more objects than its kept boxes, so the negatives of a pair are the texts of other pairs.
    """

    def __init__(
        self,
        shards: PairShards,
        labels: Sequence[FilteredLabels],
        texts: PairTexts,
        *,
        with_boxes: bool,
        box_counts: Mapping[str, int],
    ):
        """
        Args:
            shards: the same pairs as in the labels, in the same order (`open_labeled_shards`).
            labels: kept labels of each shard.
            texts: the distinct texts of the labels, with their ids.
            with_boxes: whether to use the pairs with a kept box, with their boxes; otherwise every pair with a text is
                used, without boxes.
            box_counts: number of boxes by the filter that removed them, and under "kept".

        Raises:
            ValueError: shards and labels have different numbers of pairs, or no pair is left.
        """
        self._shards = shards
        self._labels = labels
        self.texts = texts
        """Distinct texts of all labeled pairs, with their ids."""
        self.box_counts = box_counts
        """Number of boxes by the filter that removed them, and under "kept"."""
        self._with_boxes = with_boxes
        self._starts = np.cumsum([0, *map(len, labels)])
        self.num_labeled = len(shards)
        """Number of pairs given to the teacher, including those without a label to train on."""
        if self._starts[-1] != len(shards):
            raise ValueError(f"{shards.directory} has {len(shards)} pairs, but its labels have {self._starts[-1]}")
        counts = [np.diff(kept.boxes.offsets) if with_boxes else kept.num_texts() for kept in labels]
        positions = np.flatnonzero(np.concatenate([np.zeros(0, np.int64), *counts]))
        if len(positions) == 0:
            raise ValueError(
                f"no label of the pairs in {shards.directory} passes the filters; relax those of data.pairs"
            )
        self.image_ids = -1 - positions
        """Image ids: -1 - the pair's position in the shards; negative, unlike the image ids of the detection data."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def summary(self) -> str:
        """Numbers of pairs, texts and boxes to train on, and of boxes left out by each filter, in one line."""
        pairs = f"{len(self):,} of {format_count(self.num_labeled, 'image-text pair')}"
        texts, boxes = format_count(len(self.texts), "text"), format_count(self.box_counts["kept"], "box", "boxes")
        removed = ", ".join(f"{name} {count:,}" for name, count in self.box_counts.items() if count and name != "kept")
        return f"{pairs}, {texts}, {boxes}" + (f"; boxes left out by filters: {removed}" if removed else "")

    def fingerprint(self) -> str:
        """Return a hash of the pairs, their boxes and the ids of their texts."""
        digest = hashlib.sha256(self.image_ids.tobytes())
        for number, labels in enumerate(self._labels):
            digest.update(self.texts.ids(number).tobytes())
            digest.update(labels.list_of_pair.tobytes())
            for part in (labels.text_lists, labels.boxes, labels.box_texts):
                digest.update(part.offsets.tobytes())
                digest.update(part.values.tobytes())
        return digest.hexdigest()[:16]

    def record(self, image: int) -> ImageRecord:
        position = self._position(image)
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        labels, ids, row = self._labels[number], self.texts.ids(number), position - int(self._starts[number])
        boxes, box_texts = labels.boxes[row], labels.box_texts[row]
        height, width = labels.image_sizes[row].tolist()
        return ImageRecord(
            id=int(self.image_ids[image]),
            path=self._shards.directory / self._shards.location(position),
            height=height,
            width=width,
            labels=replace(
                Labels.empty(),
                boxes=boxes if self._with_boxes else boxes[:0],
                classes=ids[box_texts if self._with_boxes else box_texts[:0]],
                image_texts=np.unique(ids[labels.texts(row)]),
            ),
        )

    def encoded(self, image: int) -> Path | bytes:
        return self._shards.image(self._position(image))

    def _position(self, image: int) -> int:
        return -1 - int(self.image_ids[image])
