"""Which of a teacher's boxes are kept, decided after the fact: no threshold costs another run of the teacher.

A predicate looks at the boxes of one shard and says of each whether it passes; nothing is changed or lost unseen, since
every box removed is counted under the predicate that removed it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torchvision.ops import box_iou

from ovd.selftrain.labels import ShardLabels
from ovd.selftrain.queries import normalised

Keep = Literal["top1", "top1_per_text", "one_to_one", "all"]
SAME_PLACE_IOU = 0.5


@dataclass(frozen=True)
class Filters:
    """A box must pass all of these. The defaults keep an image's best box whatever its score, as published."""

    keep: Keep = "top1"
    """Of an image's boxes that pass the other predicates: the best; the best of each text; the same, but no two texts
    at one place; or all."""
    min_score: float = 0.0
    min_size_px: float = 0.0
    """Least shorter side, in pixels of the pair's image."""
    max_relative_area: float = 1.0
    """Largest area, as a fraction of the image's."""
    caption_match: bool = False
    """The text must occur in the pair's caption: for texts that are the same in every image."""
    max_per_text: int | None = None
    """Over the whole set, at most this many boxes of a text, the best scores first."""


def filter_labels(
    shards: Sequence[ShardLabels], filters: Filters, *, captions: Sequence[Sequence[str]] | None = None
) -> tuple[tuple[Bool[np.ndarray, " _"], ...], dict[str, int]]:
    """Which boxes are kept, and how many each predicate removed.

    First each box is looked at by itself, then those left compete for their image (`keep`), then for their text
    (`max_per_text`). Equal scores go by order.

    Args:
        captions: of every shard, of every pair; only `caption_match` needs them.

    Returns:
        A mask over every shard's boxes; and the number of boxes by the name of the first predicate that they fail, and
        under "kept". The numbers add up to all boxes.

    Raises:
        ValueError: `caption_match` without captions, or with those of other pairs.
    """
    if filters.caption_match and (captions is None or len(captions) != len(shards)):
        raise ValueError("caption_match compares with captions; give those of every shard")
    masks = [np.ones(len(shard.scores.values), dtype=bool) for shard in shards]
    counts: dict[str, int] = {}

    def remove(name: str, passed: Sequence[Bool[np.ndarray, " _"]]) -> None:
        counts[name] = sum(int((mask & ~passing).sum()) for mask, passing in zip(masks, passed, strict=True))
        masks[:] = [mask & passing for mask, passing in zip(masks, passed, strict=True)]

    remove("min_score", [score_at_least(shard, filters.min_score) for shard in shards])
    remove("min_size_px", [side_at_least_px(shard, filters.min_size_px) for shard in shards])
    remove("max_relative_area", [relative_area_at_most(shard, filters.max_relative_area) for shard in shards])
    if filters.caption_match:
        assert captions is not None
        remove("caption_match", list(map(text_in_caption, shards, captions)))
    if filters.keep != "all":
        remove(filters.keep, list(map(_CHOICES[filters.keep], shards, masks)))
    if filters.max_per_text is not None:
        remove("max_per_text", best_of_text(shards, masks, count=filters.max_per_text))
    return tuple(masks), {**counts, "kept": sum(int(mask.sum()) for mask in masks)}


def score_at_least(labels: ShardLabels, least: float) -> Bool[np.ndarray, " M"]:
    return labels.scores.values >= least


def side_at_least_px(labels: ShardLabels, least: float) -> Bool[np.ndarray, " M"]:
    return _sides(labels).min(axis=1) >= least


def relative_area_at_most(labels: ShardLabels, most: float) -> Bool[np.ndarray, " M"]:
    return _sides(labels).prod(axis=1) <= most * _image_sizes(labels).prod(axis=1)


def text_in_caption(labels: ShardLabels, captions: Sequence[str]) -> Bool[np.ndarray, " M"]:
    """Whether the words of each box's text stand in its pair's caption, side by side, in any case and number."""
    if len(captions) != len(labels.keys):
        raise ValueError(f"{len(captions)} captions for a shard of {len(labels.keys)} pairs; give one for each pair")
    padded_captions = [f" {normalised(caption)} " for caption in captions]
    padded_texts = [f" {normalised(text)} " for text in labels.texts]
    # An image has many boxes of a text: each combination is looked up once.
    combinations, row = np.unique(_pair_and_text(labels), return_inverse=True)
    occurs = [
        padded_texts[text] in padded_captions[pair]
        for pair, text in zip(*(part.tolist() for part in np.divmod(combinations, len(labels.texts) or 1)), strict=True)
    ]
    return np.array(occurs, dtype=bool)[row]


def best_of_image(labels: ShardLabels, candidates: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """Each image's best candidate."""
    return _is_among_best(labels.boxes.images_of_values(), labels.scores.values, candidates, count=1)


def best_of_text_in_image(labels: ShardLabels, candidates: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """The best candidate of each text in each image."""
    return _is_among_best(_pair_and_text(labels), labels.scores.values, candidates, count=1)


def one_text_a_place(labels: ShardLabels, candidates: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """In each image one box a text and one text a place: the best candidate first, then the best of those that are
    neither of a text already served nor at a place already taken (IoU above 0.5), and so on.

    Two texts of a caption are seldom of one object; where both fit it best, the weaker one takes its next best place.
    """
    chosen = np.zeros(len(candidates), dtype=bool)
    scores, texts, boxes = labels.scores.values, labels.box_texts.values, torch.from_numpy(labels.boxes.values)
    for start, end in itertools.pairwise(labels.boxes.offsets.tolist()):
        rows = start + np.flatnonzero(candidates[start:end])
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        same_place = (box_iou(boxes[rows], boxes[rows]) > SAME_PLACE_IOU).numpy()
        possible = np.ones(len(rows), dtype=bool)
        for place, row in enumerate(rows.tolist()):
            if possible[place]:
                chosen[row] = True
                possible &= ~same_place[place] & (texts[rows] != texts[row])
    return chosen


_CHOICES = {"top1": best_of_image, "top1_per_text": best_of_text_in_image, "one_to_one": one_text_a_place}


def best_of_text(
    shards: Sequence[ShardLabels], candidates: Sequence[Bool[np.ndarray, " _"]], *, count: int
) -> list[Bool[np.ndarray, " _"]]:
    """The `count` best candidates of each text over all shards."""
    row_of_text: dict[str, int] = {}
    texts = [np.zeros(0, dtype=np.int64)]
    for shard in shards:
        rows = [row_of_text.setdefault(text, len(row_of_text)) for text in shard.texts]
        texts.append(np.array(rows, dtype=np.int64)[shard.box_texts.values])
    scores = [np.zeros(0, dtype=np.float32), *(shard.scores.values for shard in shards)]
    is_best = _is_among_best(
        np.concatenate(texts),
        np.concatenate(scores),
        np.concatenate([np.zeros(0, dtype=bool), *candidates]),
        count=count,
    )
    return np.split(is_best, np.cumsum([len(mask) for mask in candidates]))[: len(shards)]


def _is_among_best(
    groups: Int64[np.ndarray, " M"],
    scores: Float32[np.ndarray, " M"],
    candidates: Bool[np.ndarray, " M"],
    *,
    count: int,
) -> Bool[np.ndarray, " M"]:
    """The `count` candidates of each group with the highest scores; of equal ones, the first."""
    rows = np.flatnonzero(candidates)
    order = rows[np.lexsort([-scores[rows], groups[rows]])]
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.arange(len(order)) - np.repeat(first, sizes)
    is_best = np.zeros(len(groups), dtype=bool)
    is_best[order[ranks < count]] = True
    return is_best


def _pair_and_text(labels: ShardLabels) -> Int64[np.ndarray, " M"]:
    """One number for the pair and the text of each box."""
    return labels.boxes.images_of_values() * len(labels.texts) + labels.box_texts.values


def _sides(labels: ShardLabels) -> Float64[np.ndarray, "M 2"]:
    """Width and height of each box; in float64, so that a box as large as its image is not larger by rounding."""
    boxes = labels.boxes.values.astype(np.float64)
    return boxes[:, 2:] - boxes[:, :2]


def _image_sizes(labels: ShardLabels) -> Int64[np.ndarray, "M 2"]:
    """Height and width of each box's image."""
    return labels.image_sizes[labels.boxes.images_of_values()]
