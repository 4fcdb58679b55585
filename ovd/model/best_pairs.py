"""The best (point, class) pairs of an image, found in one pass over the products of embeddings and text rows.

Points are processed chunk by chunk. Only pairs that may be among the best are scored and sorted. Two chains of bounds
select them; cosines may be rough (rough_cosines.py), scores are exact:

    rough cosines -- exact_lower_bounds -> cosines -- score_lower_bounds -> scores; the last of the best is the minimum
    minimum score -- min_cosines -------> cosines -- min_values ---------> rough cosines that a pair must have

The first chain starts from the highest rough cosine of each group of classes and from the pairs found before. With an
ensemble, for few pairs, or if each point keeps only its best class, all pairs are scored.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

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

    def __len__(self) -> int:
        """Return N, the number of pairs."""
        return len(self.scores)

    def __getitem__(self, rows: Tensor | slice) -> "Pairs":
        return Pairs(self.points[rows], self.classes[rows], self.scores[rows])

    def best_with(self, later: "Pairs", count: int) -> "Pairs":
        """Return the best of these and later pairs, best first; equal scores stay in the order of point, then class.

        Args:
            later: pairs of later points.
            count: maximum number of pairs.
        """
        both = Pairs(
            torch.cat([self.points, later.points]),
            torch.cat([self.classes, later.classes]),
            torch.cat([self.scores, later.scores]),
        )
        return both[both.scores.argsort(descending=True, stable=True)[:count]]


def best_pairs(points: PointPredictions, scoring: Scoring) -> Pairs:
    """Find the `candidates` pairs with the highest scores above `score_threshold`, best first.

    Pairs of equal score are in the order of point, then class. With `one_name_per_place` only the best class of each
    point counts.

    Raises:
        ValueError: a score is NaN.
    """
    device, options = points.boxes.device, scoring.options
    count, above = options.candidates, options.score_threshold
    none = torch.empty(0, dtype=torch.int64, device=device)
    best = Pairs(none, none, torch.empty(0, dtype=torch.float32, device=device))
    min_score = torch.tensor(above, dtype=torch.float32, device=device)  # no pair with a lower score is among the best
    chunk_size = math.ceil(len(points) / max(1, math.ceil(len(points) / scoring.chunk_size)))  # chunks of equal size
    for first in range(0, len(points), max(1, chunk_size)):
        scores = scoring.pair_scores(points[first : first + chunk_size])
        if options.one_name_per_place is not None:
            found = _best_class_of_each_point(scores.all_scores())
        elif scores.has_ensemble or scores.num_pairs <= (FEW_COMPETING_PAIRS if scores.competes else FEW_PAIRS):
            found = _select_by_score(scores.all_scores(), count)
        else:
            found = _select_by_cosine(scores, min_score, None if len(best) == count else count)
        found = found[found.scores > above]
        best = best.best_with(Pairs(first + found.points, found.classes, found.scores), count)
        if len(best) == count:
            min_score = best.scores[-1]
    return best


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


def _select_by_score(scores: Float[Tensor, "P C"], count: int) -> Pairs:
    """Return the pairs that may be among the `count` best ones."""
    rows, classes = (scores >= _kth_best_score(check_not_nan(scores), count)).nonzero().unbind(dim=1)
    return Pairs(rows, classes, scores[rows, classes])


def _select_by_cosine(scores: PairScores, min_score: Float[Tensor, ""], count: int | None) -> Pairs:
    """Return the pairs that may reach the minimum score, and a few others.

    Args:
        min_score: the minimum score.
        count: number of best pairs to find, which may raise the minimum score; None keeps it as it is.
    """
    rough = scores.rough_cosines
    groups = _Groups.from_values(rough.values)
    if count is not None:  # the groups' highest are different pairs, so at least `count` pairs score this much
        some = _merged_group_maxima(groups.highest, BOUNDS_PER_PAIR * count)
        certain = scores.score_lower_bounds(rough.exact_lower_bounds(some))
        min_score = torch.maximum(min_score, _kth_best_score(certain, count))
    min_values = check_not_nan(rough.min_values(scores.min_cosines(min_score)))
    rows, classes = groups.pairs_at_or_above(min_values, scores.num_classes)
    return Pairs(rows, classes, scores.scores_of_pairs(rows, classes))


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


def _kth_best_score(scores: Float[Tensor, "P N"], count: int) -> Float[Tensor, ""]:
    """Return the lowest of the `count` best scores; 0 if there are fewer."""
    if scores.numel() < count:
        return scores.new_zeros(())
    if scores.device.type != "cpu":
        return scores.flatten().topk(count, sorted=False).values.amin()
    # On a CPU NumPy's selection is 3 to 9 times as fast.
    place = scores.numel() - count
    return scores.new_tensor(np.partition(scores.numpy(), place, axis=None)[place])
