"""Image-text pairs with a teacher's labels as training data, with the loader's interface of annotated data sets."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64

from ovd.config import BoxFilters
from ovd.data.index import ImageRecord, Labels, Ragged
from ovd.data.pairs.tar import PairShards
from ovd.progress import progress
from ovd.selftrain.filter import best_of_group, filter_labels
from ovd.selftrain.labels import ShardLabels, read_labels
from ovd.text.pair_texts import PairTexts


@dataclass(frozen=True)
class KeptLabels:
    """The part of a shard's labels that training needs, for its N pairs and Q texts.

    It has no strings, and only the boxes that pass the filters: every rank keeps it in memory for the whole data set,
    millions of pairs with up to a hundred boxes each. For the same reason a vocabulary that is the query of many images
    is stored once.
    """

    image_sizes: Int32[np.ndarray, "N 2"]
    """Height and width in pixels; 0 where the image could not be read."""
    pair_counts: Int32[np.ndarray, " Q"]
    """Number of pairs that each text is a query of."""
    query_lists: Ragged
    """Lists of queries: rows of texts, int32."""
    list_of_pair: Int32[np.ndarray, " N"]
    """Row of each pair's list in `query_lists`."""
    boxes: Ragged
    """xyxy in pixels of the pair's image, float32, best first."""
    scores: Ragged
    """Scores of the boxes, float32."""
    box_texts: Ragged
    """Row of each box's text, int32."""

    @classmethod
    def of(cls, labels: ShardLabels, mask: Bool[np.ndarray, " M"]) -> "KeptLabels":
        """The part of a shard's labels that training needs.

        Args:
            mask: which of the M boxes are kept.
        """
        boxes = labels.boxes.select(mask)
        query_lists, list_of_pair = _without_repeats(labels.queries)
        return cls(
            image_sizes=labels.image_sizes.astype(np.int32),
            pair_counts=np.bincount(labels.queries.values, minlength=len(labels.texts)).astype(np.int32),
            query_lists=Ragged(query_lists.values.astype(np.int32), query_lists.offsets),
            list_of_pair=list_of_pair,
            boxes=boxes,
            scores=Ragged(labels.scores.values[mask], boxes.offsets),
            box_texts=Ragged(labels.box_texts.values[mask].astype(np.int32), boxes.offsets),
        )

    def select(self, mask: Bool[np.ndarray, " K"]) -> "KeptLabels":
        """The labels with only these boxes."""
        boxes = self.boxes.select(mask)
        return replace(
            self,
            boxes=boxes,
            scores=Ragged(self.scores.values[mask], boxes.offsets),
            box_texts=Ragged(self.box_texts.values[mask], boxes.offsets),
        )

    def queries(self, pair: int) -> Int32[np.ndarray, " K"]:
        """Rows of the texts that are queries of the pair."""
        return self.query_lists[int(self.list_of_pair[pair])]

    def num_queries(self) -> Int64[np.ndarray, " N"]:
        return np.diff(self.query_lists.offsets)[self.list_of_pair]

    def __len__(self) -> int:
        return len(self.image_sizes)


def _without_repeats(lists: Ragged) -> tuple[Ragged, Int32[np.ndarray, " N"]]:
    """The lists of N images, with consecutive equal lists only once, and the row of each image's list."""
    lengths, images = np.diff(lists.offsets), lists.images_of_values()
    # In a list as long as the one before it, an element's counterpart is one length before the element. In other lists
    # the value is arbitrary, and not used.
    counterparts = lists.values[np.arange(len(lists.values)) - lengths[images]]
    is_new = np.diff(lengths, prepend=-1) != 0
    is_new[images[lists.values != counterparts]] = True
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[is_new])])
    return Ragged(lists.values[is_new[images]], offsets), (np.cumsum(is_new) - 1).astype(np.int32)


def read_kept_labels(
    files: Sequence[Path], filters: BoxFilters, shards: PairShards
) -> tuple[list[KeptLabels], Counter[str]]:
    """Read and filter label files one after another.

    Args:
        shards: the shards of the files (`open_labelled_shards`).

    Returns:
        The labels that are left, and the number of boxes by the predicate that removed them, and under "kept".
    """
    kept, counts = [], Counter[str]()
    for file, name in progress(zip(files, shards.file_names, strict=True), len(files), "labels"):
        labels = read_labels(file)
        captions = None
        if filters.caption_match:
            captions = [shards.caption(position) for position in shards.positions(name)]
        mask, of_shard = filter_labels(labels, filters, captions=captions)
        kept.append(KeptLabels.of(labels, mask))
        counts.update(of_shard)
    return kept, counts


def limit_per_text(kept: Sequence[KeptLabels], texts: PairTexts, count: int) -> tuple[list[KeptLabels], int]:
    """Keep at most `count` boxes per text over the whole set, those with the best scores; of equal ones, the first.

    Returns:
        The labels that are left, and the number of boxes removed.
    """
    ids = [np.zeros(0, np.int64), *(texts.ids(number)[of.box_texts.values] for number, of in enumerate(kept))]
    scores = [np.zeros(0, np.float32), *(of.scores.values for of in kept)]
    is_best = best_of_group(np.concatenate(ids), np.concatenate(scores), count=count)
    masks = np.split(is_best, np.cumsum([len(of.scores.values) for of in kept]))
    left = [of if mask.all() else of.select(mask) for of, mask in zip(kept, masks, strict=False)]
    return left, len(is_best) - int(is_best.sum())


class LabelledPairs:
    """The pairs with a label to train on, in the order of their shards; an `ImageSource` of the loader.

    The classes of a record are ids of texts; its `image_texts` are all queries of its image. An image may show more
    than its kept boxes, so the negatives of a pair are the texts of other pairs.
    """

    def __init__(self, shards: PairShards, labels: Sequence[KeptLabels], texts: PairTexts, *, with_boxes: bool):
        """
        Args:
            shards: the same pairs as in the labels, in the same order (`open_labelled_shards`).
            labels: one per shard.
            texts: the ids of the labels' texts.
            with_boxes: whether to use pairs with a kept box, with their boxes; else every pair with a query, without
                boxes.

        Raises:
            ValueError: shards and labels have different numbers of pairs, or no pair is left.
        """
        self._shards = shards
        self._labels = labels
        self._texts = texts
        self._with_boxes = with_boxes
        self._starts = np.cumsum([0, *map(len, labels)])
        self.num_labelled = len(shards)
        """Number of pairs given to the teacher, including those without a label to train on."""
        if self._starts[-1] != len(shards):
            raise ValueError(f"{shards.directory} has {len(shards)} pairs, its labels have {self._starts[-1]}")
        counts = [np.diff(of.boxes.offsets) if with_boxes else of.num_queries() for of in labels]
        positions = np.flatnonzero(np.concatenate([np.zeros(0, np.int64), *counts]))
        if len(positions) == 0:
            raise ValueError(f"no pair of {shards.directory} has a label that passes the filters; loosen data.pairs")
        self.image_ids = -1 - positions
        """-1 - the pair's position in the shards: negative, unlike any image id of the detection data."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def fingerprint(self) -> str:
        """Hash of the pairs, their boxes and the ids of their texts."""
        digest = hashlib.sha256(self.image_ids.tobytes())
        for number, labels in enumerate(self._labels):
            digest.update(self._texts.ids(number).tobytes())
            digest.update(labels.list_of_pair.tobytes())
            for part in (labels.query_lists, labels.boxes, labels.box_texts):
                digest.update(part.offsets.tobytes())
                digest.update(part.values.tobytes())
        return digest.hexdigest()[:16]

    def record(self, image: int) -> ImageRecord:
        position = self._position(image)
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        labels, ids, row = self._labels[number], self._texts.ids(number), position - int(self._starts[number])
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
                image_texts=np.unique(ids[labels.queries(row)]),
            ),
        )

    def encoded(self, image: int) -> Path | bytes:
        return self._shards.image(self._position(image))

    def _position(self, image: int) -> int:
        return -1 - int(self.image_ids[image])
