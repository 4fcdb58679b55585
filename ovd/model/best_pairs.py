"""The best (point, class) pairs of images, found in one pass over the products of embeddings and text rows.

Points are processed chunk by chunk. Only pairs that may be among the best are scored and sorted. Two chains of bounds
select them; cosines may be rough (rough_cosines.py), scores are exact:

    rough cosines -- exact_lower_bounds -> cosines -- score_lower_bounds -> scores; the last of the best is the minimum
    minimum score -- min_cosines -------> cosines -- min_values ---------> rough cosines that a pair must have

The first chain starts from the highest rough cosine of each group of classes and from the pairs found before. With an
ensemble, for few pairs, for images with classifiers of their own, or if each point keeps only its best class, all pairs
are scored.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import PairScores, PointPredictions, Scoring
from ovd.model.rounded_rows import ROW_MULTIPLE

CLASSES_IN_GROUP = ROW_MULTIPLE
"""Number of classes in a group, of which only the highest cosine is used at first."""
BOUNDS_PER_PAIR = 16
"""Minimum number of score bounds to rank per pair to be found, if there are as many."""
FEW_PAIRS = 2**18
"""Number of pairs up to which scoring all is faster than choosing among them."""
FEW_COMPETING_PAIRS = 2**22
"""`FEW_PAIRS` where names compete, since the bounds on scores are wide there."""


@dataclass(frozen=True)
class Pairs:
    """N (point, class) pairs with their scores."""

    points: Int[Tensor, " N"]
    classes: Int[Tensor, " N"]
    scores: Float[Tensor, " N"]

    @classmethod
    def none(cls, device: torch.device) -> "Pairs":
        """Return no pairs."""
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return cls(empty, empty, torch.empty(0, dtype=torch.float32, device=device))

    @classmethod
    def join(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """Return the pairs of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        names = ("points", "classes", "scores")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        """Return N, the number of pairs."""
        return len(self.scores)

    def __getitem__(self, rows: Tensor | slice) -> "Pairs":
        return Pairs(self.points[rows], self.classes[rows], self.scores[rows])

    def above(self, score: float) -> "Pairs":
        """Return the pairs with higher scores."""
        return self[(self.scores > score).nonzero().squeeze(1)]

    def best_first(self) -> "Pairs":
        """Return the pairs by falling score; equal scores stay in their order."""
        return self[self.scores.argsort(descending=True, stable=True)]


def best_pairs(points: PointPredictions, scoring: Scoring, num_images: int = 1) -> list[Pairs]:
    """Find each image's `candidates` pairs with the highest scores above `score_threshold`, best first.

    Pairs of equal score are in the order of point, then class. With `one_name_per_place` only the best class of each
    point counts.

    Args:
        points: points of all images, one image after the other, the same number of each. Several images are scored at
            once, one alone in chunks.

    Raises:
        ValueError: a score is NaN.
    """
    count, above = scoring.options.candidates, scoring.options.score_threshold
    # No pair with a lower score is among an image's best.
    min_scores = torch.full((num_images,), above, dtype=torch.float32, device=points.boxes.device)
    if num_images > 1:
        found = _select(scoring.pair_scores(points), scoring.options, min_scores, count)
        return _best_of_each_image(found.above(above), num_images, len(points) // num_images, count)

    best = Pairs.none(points.boxes.device)
    chunk_size = math.ceil(len(points) / max(1, math.ceil(len(points) / scoring.chunk_size)))  # chunks of equal size
    for first in range(0, len(points), max(1, chunk_size)):
        scores = scoring.pair_scores(points[first : first + chunk_size])
        found = _select(scores, scoring.options, min_scores, None if len(best) == count else count).above(above)
        best = Pairs.join([best, Pairs(first + found.points, found.classes, found.scores)]).best_first()[:count]
        if len(best) == count:
            min_scores = best.scores[-1:]
    return [best]


def _best_of_each_image(pairs: Pairs, num_images: int, points_per_image: int, count: int) -> list[Pairs]:
    """Return the `count` best pairs of each image, best first."""
    pairs = pairs.best_first()
    image = pairs.points // points_per_image
    pairs = pairs[image.argsort(stable=True)]
    numbers = image.bincount(minlength=num_images).tolist()
    ends = itertools.accumulate(numbers)
    return [pairs[end - number : end - number + min(number, count)] for number, end in zip(numbers, ends, strict=True)]


def _select(scores: PairScores, options: DetectionOptions, min_scores: Float[Tensor, " B"], count: int | None) -> Pairs:
    """Return pairs in the order of point, then class, among them the `count` best of each of the B images.

    Args:
        scores: scores of the points of all images, one image after the other.
        min_scores: lowest score of a pair to find, for each image.
        count: None to find all that reach the minimum score.
    """
    if options.one_name_per_place is not None:
        return _best_class_of_each_point(scores.all_scores())
    if not scores.has_bounds or scores.num_pairs <= (FEW_COMPETING_PAIRS if scores.competes else FEW_PAIRS):
        return _select_by_score(scores.all_scores(), min_scores, options.candidates)
    return _select_by_cosine(scores, min_scores, count)


def check_not_nan(best_scores: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Check that no score is NaN, and return the scores.

    The best scores of points are enough for that, since a maximum is NaN if any of its inputs is.

    Raises:
        ValueError: one is NaN.
    """
    if best_scores.numel() > 0 and best_scores.amax().isnan():
        raise ValueError("a score is NaN; the detector's weights, its input or the text rows contain NaN or infinity")
    return best_scores


def _best_class_of_each_point(scores: Float[Tensor, "P C"]) -> Pairs:
    """Return each point's best pair."""
    best, classes = scores.max(dim=1)
    return Pairs(torch.arange(len(scores), device=scores.device), classes, check_not_nan(best))


def _select_by_score(scores: Float[Tensor, "P C"], min_scores: Float[Tensor, " B"], count: int) -> Pairs:
    """Return the pairs that reach the minimum score of their image and may be among its `count` best ones."""
    limits = torch.maximum(min_scores, _kth_best_scores(check_not_nan(scores), len(min_scores), count))
    rows, classes = (scores >= _per_point(limits, scores)[:, None]).nonzero().unbind(dim=1)
    return Pairs(rows, classes, scores[rows, classes])


def _select_by_cosine(scores: PairScores, min_scores: Float[Tensor, " B"], count: int | None) -> Pairs:
    """Return the pairs that may reach the minimum score of their image, and a few others.

    Args:
        min_scores: the minimum scores.
        count: number of best pairs to find per image, which may raise the minimum scores; None keeps them as they are.
    """
    rough, num_images = scores.rough_cosines, len(min_scores)
    groups = _Groups.from_values(rough.values)
    if count is not None:  # the groups' highest are different pairs, so at least `count` pairs score this much
        some = _merged_group_maxima(groups.highest, BOUNDS_PER_PAIR * count * num_images)
        certain = scores.score_lower_bounds(rough.exact_lower_bounds(some))
        min_scores = torch.maximum(min_scores, _kth_best_scores(certain, num_images, count))
    min_values = check_not_nan(rough.min_values(scores.min_cosines(_per_point(min_scores, rough.values))))
    rows, classes = groups.pairs_at_or_above(min_values, scores.num_classes)
    return Pairs(rows, classes, scores.scores_of_pairs(rows, classes))


def _per_point(of_images: Float[Tensor, " B"], points: Float[Tensor, "P N"]) -> Float[Tensor, " P"]:
    """Repeat a number of each image for all of its points."""
    return of_images.repeat_interleave(len(points) // len(of_images))


@dataclass(frozen=True)
class _Groups:
    """Rough cosines in G groups of `CLASSES_IN_GROUP` classes: the group g has the classes g, g + G, g + 2 G, ..."""

    values: Float[Tensor, "P M"]
    """Rough cosines of all classes; negative infinity in the padding that makes the groups equally large."""
    highest: Float[Tensor, "P G"]
    """The highest value of every group, in float32."""

    @classmethod
    def from_values(cls, values: Float[Tensor, "P M"]) -> "_Groups":
        missing = -values.shape[1] % CLASSES_IN_GROUP
        if missing > 0:
            values = F.pad(values, (0, missing), value=-torch.inf)
        num_groups = values.shape[1] // CLASSES_IN_GROUP
        if values.device.type != "cpu":
            return cls(values, values.unflatten(1, (CLASSES_IN_GROUP, num_groups)).amax(dim=1).float())
        # On a CPU pooling is three times as fast.
        as_map = values.view(-1, CLASSES_IN_GROUP, 1, num_groups).permute(0, 3, 1, 2)
        return cls(values, F.max_pool2d(as_map, (CLASSES_IN_GROUP, 1)).flatten(1).float())

    def pairs_at_or_above(
        self, min_values: Float[Tensor, " P"], num_classes: int
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """Return points and classes of the pairs with at least the value needed at their point, by point, then class.

        Args:
            min_values: lowest value of a pair, for each point.
            num_classes: number of columns that are not padding.

        Raises:
            ValueError: a value is NaN.
        """
        num_groups = self.highest.shape[1]
        rows, group = (check_not_nan(self.highest) >= min_values[:, None]).nonzero().unbind(dim=1)
        # All classes of the groups whose highest value is high enough.
        classes = group[:, None] + num_groups * torch.arange(CLASSES_IN_GROUP, device=rows.device)
        rows, classes = torch.broadcast_tensors(rows[:, None], classes)
        passes = self.values[rows, classes].float() >= min_values[rows]
        pairs = (num_classes * rows + classes)[passes & (classes < num_classes)].sort().values
        return pairs // num_classes, pairs % num_classes


def _merged_group_maxima(highest: Float[Tensor, "P G"], count: int) -> Float[Tensor, "P N"]:
    """Join groups to larger ones, and return their highest values: at least `count`, if there are as many groups.

    The last groups are left out if they do not fill larger ones.
    """
    num_joined = min(highest.numel() // count, highest.shape[1])
    if num_joined < 2:
        return highest
    columns = highest.shape[1] // num_joined
    return highest[:, : num_joined * columns].unflatten(1, (num_joined, columns)).amax(dim=1)


def _kth_best_scores(scores: Float[Tensor, "P N"], num_images: int, count: int) -> Float[Tensor, " B"]:
    """Return the lowest of the `count` best scores of each image; 0 if it has fewer."""
    of_images = scores.reshape(num_images, -1)
    if of_images.shape[1] < count:
        return scores.new_zeros(num_images)
    if scores.device.type != "cpu":
        return of_images.topk(count, dim=1, sorted=False).values.amin(dim=1)
    # On a CPU NumPy's selection is 3 to 9 times as fast.
    place = of_images.shape[1] - count
    return torch.from_numpy(np.partition(of_images.numpy(), place, axis=1)[:, place].copy())
