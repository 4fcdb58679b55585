"""The part of a shard's labels that passes the filters, in the form that training keeps in memory."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int32, Int64

from ovd.data.index import Ragged
from ovd.selftrain.labels import ShardLabels


@dataclass(frozen=True)
class FilteredLabels:
    """The part of a shard's labels that training needs, for its N pairs and Q texts.

    It has no strings, and only the boxes that pass the filters: every rank keeps it in memory for the whole data set,
    millions of pairs with up to a hundred boxes each. For the same reason a list of texts that consecutive images share
    is stored once.
    """

    image_sizes: Int32[np.ndarray, "N 2"]
    """Height and width in pixels; 0 if the image could not be read."""
    pair_counts: Int32[np.ndarray, " Q"]
    """Number of pairs that each text belongs to."""
    text_lists: Ragged
    """Lists of the texts of a pair, as rows of the shard's texts, int32."""
    list_of_pair: Int32[np.ndarray, " N"]
    """Row of each pair's list in `text_lists`."""
    boxes: Ragged
    """Boxes of each pair, xyxy in pixels of its image, float32, best first."""
    scores: Ragged
    """Scores of the boxes, float32."""
    box_texts: Ragged
    """Row of each box's text, int32."""

    @classmethod
    def from_labels(
        cls, labels: ShardLabels, mask: Bool[np.ndarray, " M"], *, only_box_texts: bool = False
    ) -> "FilteredLabels":
        """Reduce a shard's labels to the part that training needs.

        Args:
            mask: which of the M boxes are kept.
            only_box_texts: whether the texts of a pair are only those of its kept boxes, instead of all its queries.
        """
        boxes = labels.boxes.select(mask)
        box_texts = Ragged(labels.box_texts.values[mask].astype(np.int32), boxes.offsets)
        texts = _texts_of_boxes(box_texts, len(labels.texts)) if only_box_texts else labels.queries
        text_lists, list_of_pair = _without_repeats(texts)
        return cls(
            image_sizes=labels.image_sizes.astype(np.int32),
            pair_counts=np.bincount(texts.values, minlength=len(labels.texts)).astype(np.int32),
            text_lists=Ragged(text_lists.values.astype(np.int32), text_lists.offsets),
            list_of_pair=list_of_pair,
            boxes=boxes,
            scores=Ragged(labels.scores.values[mask], boxes.offsets),
            box_texts=box_texts,
        )

    def select(self, mask: Bool[np.ndarray, " K"]) -> "FilteredLabels":
        """Select boxes; the pairs keep all their texts, since the objects of removed boxes were found, too."""
        boxes = self.boxes.select(mask)
        return replace(
            self,
            boxes=boxes,
            scores=Ragged(self.scores.values[mask], boxes.offsets),
            box_texts=Ragged(self.box_texts.values[mask], boxes.offsets),
        )

    def texts(self, pair: int) -> Int32[np.ndarray, " K"]:
        """Return the rows of a pair's texts."""
        return self.text_lists[int(self.list_of_pair[pair])]

    def num_texts(self) -> Int64[np.ndarray, " N"]:
        """Count the texts of each pair."""
        return np.diff(self.text_lists.offsets)[self.list_of_pair]

    def __len__(self) -> int:
        return len(self.image_sizes)


def _texts_of_boxes(box_texts: Ragged, num_texts: int) -> Ragged:
    """Return the distinct texts of each image's boxes, ascending."""
    combinations = np.unique(box_texts.images_of_values() * num_texts + box_texts.values)
    images, texts = np.divmod(combinations, max(1, num_texts))
    counts = np.bincount(images, minlength=len(box_texts.offsets) - 1)
    return Ragged.from_rows(texts, counts)


def _without_repeats(lists: Ragged) -> tuple[Ragged, Int32[np.ndarray, " N"]]:
    """Merge consecutive equal lists of N images; return the lists left, and the row of each image's list."""
    lengths, images = np.diff(lists.offsets), lists.images_of_values()
    # In a list as long as the previous one, the counterpart of an element is one list length before it. In other lists
    # the counterpart is arbitrary and not used.
    counterparts = lists.values[np.arange(len(lists.values)) - lengths[images]]
    is_new = np.diff(lengths, prepend=-1) != 0
    is_new[images[lists.values != counterparts]] = True
    distinct = Ragged.from_rows(lists.values[is_new[images]], lengths[is_new])
    return distinct, (np.cumsum(is_new) - 1).astype(np.int32)
