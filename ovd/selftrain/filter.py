"""Filters of a teacher's boxes, applied after labeling, so that a new threshold does not need a new teacher run.

A predicate returns a mask over the boxes of one shard; every removed box is counted under the predicate that removed
it. Data sets have millions of images, so nothing here loops over them, except over captions for their words.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ovd.config.training import BoxFilters
from ovd.data.box_arrays import paired_iou
from ovd.selftrain.labels import ShardLabels
from ovd.selftrain.words import normalize_text, strip_sense

SAME_PLACE_IOU = 0.5


def filter_labels(
    labels: ShardLabels, filters: BoxFilters, *, captions: Sequence[str] | None = None
) -> tuple[Bool[np.ndarray, " M"], dict[str, int]]:
    """Filter the boxes of a shard, and count how many each predicate removes.

    First each box is checked by itself, then `keep` selects among the remaining boxes of each image. Of equal scores,
    the first is preferred.

    Args:
        captions: the caption of every pair; only `caption_match` needs them.

    Returns:
        A mask over the boxes; and the number of boxes by the name of the first predicate that they fail, and under
        "kept". The numbers add up to all boxes.

    Raises:
        ValueError: `caption_match` is set without captions, or their number differs from that of the pairs.
    """
    if filters.caption_match and captions is None:
        raise ValueError("caption_match needs captions; give those of the shard")
    mask = np.ones(len(labels.scores.values), dtype=bool)
    counts: dict[str, int] = {}

    def remove(name: str, passing: Bool[np.ndarray, " M"]) -> None:
        nonlocal mask
        counts[name] = int((mask & ~passing).sum())
        mask = mask & passing

    remove("min_score", has_min_score(labels, filters.min_score))
    remove("min_size_px", has_min_side(labels, filters.min_size_px))
    remove("max_relative_area", has_max_relative_area(labels, filters.max_relative_area))
    if filters.caption_match:
        assert captions is not None
        remove("caption_match", text_in_caption(labels, captions))
    if filters.keep != "all":
        remove(filters.keep, _KEEP_RULES[filters.keep](labels, mask))
    return mask, {**counts, "kept": int(mask.sum())}


def has_min_score(labels: ShardLabels, min_score: float) -> Bool[np.ndarray, " M"]:
    """Whether each box has at least this score."""
    return labels.scores.values >= min_score


def has_min_side(labels: ShardLabels, min_side_px: float) -> Bool[np.ndarray, " M"]:
    """Whether each box's shorter side has at least this length, in pixels of the pair's image."""
    return _sides(labels).min(axis=1) >= min_side_px


def has_max_relative_area(labels: ShardLabels, max_area: float) -> Bool[np.ndarray, " M"]:
    """Whether each box covers at most this fraction of its image."""
    return _sides(labels).prod(axis=1) <= max_area * _image_sizes(labels).prod(axis=1)


def text_in_caption(labels: ShardLabels, captions: Sequence[str]) -> Bool[np.ndarray, " M"]:
    """Whether the words of each box's text occur in sequence in its pair's caption, in any case, singular or plural.

    A sense in brackets, as in "bow (weapon)", need not occur.
    """
    if len(captions) != len(labels.keys):
        raise ValueError(f"{len(captions)} captions for a shard of {len(labels.keys)} pairs; give one for each pair")
    padded_captions = [f" {normalize_text(caption)} " for caption in captions]
    padded_texts = [{f" {normalize_text(form)} " for form in (text, strip_sense(text))} for text in labels.texts]
    # An image has many boxes per text, so each combination is compared only once.
    combinations, row = np.unique(_pair_and_text(labels), return_inverse=True)
    occurs = [
        any(form in padded_captions[pair] for form in padded_texts[text])
        for pair, text in zip(*(part.tolist() for part in np.divmod(combinations, len(labels.texts))), strict=True)
    ]
    return np.array(occurs, dtype=bool)[row]


def best_of_image(labels: ShardLabels, candidates: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """Choose the best candidate of each image."""
    return _best_candidates(labels.boxes.images_of_values(), labels, candidates)


def best_of_text_in_image(labels: ShardLabels, candidates: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """Choose the best candidate of each text in each image."""
    return _best_candidates(_pair_and_text(labels), labels, candidates)


def best_one_to_one(labels: ShardLabels, candidates: Bool[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """Choose one box per text and one text per place in each image.

    The best candidate is chosen whose text has no chosen box yet and which overlaps no chosen box (IoU above 0.5), and
    so on greedily. Two texts of a caption rarely name the same object; if both score best on one object, the
    lower-scoring text gets its next best box.
    """
    chosen = np.zeros(len(candidates), dtype=bool)
    images, texts, boxes = labels.boxes.images_of_values(), labels.box_texts.values, labels.boxes.values
    rows = np.flatnonzero(candidates)
    rows = rows[np.lexsort([-labels.scores.values[rows], images[rows]])]
    while len(rows):  # each round chooses one box per image
        is_best = np.diff(images[rows], prepend=-1) > 0
        best = rows[is_best]
        chosen[best] = True
        best_of_its_image = best[np.cumsum(is_best) - 1]
        is_other_text = texts[rows] != texts[best_of_its_image]
        rows = rows[is_other_text & (paired_iou(boxes[rows], boxes[best_of_its_image]) <= SAME_PLACE_IOU)]
    return chosen


_KEEP_RULES = {"top1": best_of_image, "top1_per_text": best_of_text_in_image, "one_to_one": best_one_to_one}


def best_of_groups(
    groups: Int64[np.ndarray, " M"], scores: Float32[np.ndarray, " M"], *, count: int
) -> Bool[np.ndarray, " M"]:
    """Select the `count` members of each group with the highest scores; of equal scores, the first."""
    order = np.lexsort([-scores, groups])
    in_order = groups[order]
    first = np.flatnonzero(np.concatenate([np.ones(len(order[:1]), bool), in_order[1:] != in_order[:-1]]))
    ranks = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    is_best = np.zeros(len(groups), dtype=bool)
    is_best[order[ranks < count]] = True
    return is_best


def _best_candidates(
    groups: Int64[np.ndarray, " M"], labels: ShardLabels, candidates: Bool[np.ndarray, " M"]
) -> Bool[np.ndarray, " M"]:
    """Select the candidate of each group with the highest score."""
    rows = np.flatnonzero(candidates)
    chosen = np.zeros(len(candidates), dtype=bool)
    chosen[rows[best_of_groups(groups[rows], labels.scores.values[rows], count=1)]] = True
    return chosen


def _pair_and_text(labels: ShardLabels) -> Int64[np.ndarray, " M"]:
    """Compute a number that identifies the pair and the text of each box."""
    return labels.boxes.images_of_values() * len(labels.texts) + labels.box_texts.values


def _sides(labels: ShardLabels) -> Float64[np.ndarray, "M 2"]:
    """Compute width and height of each box, in float64: rounding must not make a box larger than its image."""
    boxes = labels.boxes.values.astype(np.float64)
    return boxes[:, 2:] - boxes[:, :2]


def _image_sizes(labels: ShardLabels) -> Int64[np.ndarray, "M 2"]:
    """Return height and width of each box's image."""
    return labels.image_sizes[labels.boxes.images_of_values()]
