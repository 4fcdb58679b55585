"""Image-text pairs with a teacher's labels as training data: what the loader reads like an annotated data set."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from ovd.data.annotations import ImageRecord
from ovd.data.pairs import PairShards
from ovd.selftrain.labels import ShardLabels
from ovd.text.pair_texts import PairTexts


class LabelledPairs:
    """The pairs that have something to teach, in the order of their shards; an `ImageSource` of the loader.

    The classes of a record are ids of texts. Its own texts are listed as not exhaustive: a teacher's best boxes are not
    all there is. So the negatives of a pair are the texts of other pairs.
    """

    def __init__(
        self,
        shards: PairShards,
        labels: Sequence[ShardLabels],
        kept: Sequence[Bool[np.ndarray, " M"]],
        texts: PairTexts,
        *,
        with_boxes: bool,
    ):
        """
        Args:
            shards: of the same pairs as the labels, in the same order (`open_labelled_shards`).
            labels: one per shard.
            kept: which boxes of each shard to train on (filter.py).
            texts: gives every text of the labels its id.
            with_boxes: only pairs with a kept box; else every pair with a text, and no boxes at all.

        Raises:
            ValueError: shards and labels are not of as many pairs, or no pair is left.
        """
        self._shards = shards
        self._labels = labels
        self._texts = texts
        self._with_boxes = with_boxes
        self._starts = np.cumsum([0, *(len(of_shard.keys) for of_shard in labels)])
        if self._starts[-1] != len(shards):
            raise ValueError(f"{shards.directory} has {len(shards)} pairs, its labels speak of {self._starts[-1]}")
        self._kept = kept
        places = []
        for number, (of_shard, mask) in enumerate(zip(labels, kept, strict=True)):
            if with_boxes:
                counts = np.bincount(of_shard.boxes.images_of_values()[mask], minlength=len(of_shard.keys))
            else:
                counts = np.diff(of_shard.queries.offsets)
            rows = np.flatnonzero(counts)
            places.append(np.stack([np.full(len(rows), number), rows], axis=1))
        self._places: Int64[np.ndarray, "N 2"] = np.concatenate(places)
        if len(self._places) == 0:
            raise ValueError(f"no pair of {shards.directory} has a label that passes the filters; loosen data.pairs")
        self.image_ids = -1 - (self._starts[self._places[:, 0]] + self._places[:, 1])
        """Minus one minus the pair's position in the shards: never an image id of the detection data."""

    def __len__(self) -> int:
        return len(self._places)

    def fingerprint(self) -> str:
        """Hash of all that training takes from the labels: the pairs, their order, their boxes and texts."""
        digest = hashlib.sha256(self._places.tobytes())
        for labels, kept in zip(self._labels, self._kept, strict=True):
            digest.update(json.dumps([labels.keys, labels.texts]).encode())
            for array in (kept, labels.boxes.values, labels.box_texts.values, labels.queries.values):
                digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def record(self, image: int) -> ImageRecord:
        number, row = self._places[image].tolist()
        labels, ids = self._labels[number], self._texts.ids(number)
        start, end = labels.boxes.offsets[row : row + 2]
        chosen = np.flatnonzero(self._kept[number][start:end]) + start if self._with_boxes else np.arange(0)
        height, width = labels.image_sizes[row].tolist()
        return ImageRecord(
            id=int(self.image_ids[image]),
            path=self._shards.directory / self._shards.location(self._position(image)),
            height=height,
            width=width,
            boxes=labels.boxes.values[chosen],
            classes=ids[labels.box_texts.values[chosen]],
            crowd_boxes=np.zeros((0, 4), np.float32),
            negative_classes=np.arange(0),
            not_exhaustive_classes=np.unique(ids[labels.queries[row]]),
        )

    def encoded(self, image: int) -> Path | bytes:
        return self._shards.image(self._position(image))

    def _position(self, image: int) -> int:
        return -1 - int(self.image_ids[image])
