"""The best (point, class) pairs of an image, found in one pass over the products of embeddings and text rows.

Points are processed chunk by chunk. Only pairs that may be among the best are scored and sorted. Two chains of bounds
select them; cosines may be rough (rough_cosines.py), scores are exact:

    rough cosines -- exact_at_least --> cosines -- scores_at_least --> scores, of which the last of the best is needed
    needed score  -- cosines_needed --> cosines -- values_needed  --> rough cosines that a pair must have

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
from ovd.model.rounded_rows import MULTIPLE

CLASSES_IN_GROUP = MULTIPLE
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
    needed = torch.tensor(above, dtype=torch.float32, device=device)  # no pair with a lower score is among the best
    at_a_time = math.ceil(len(points) / max(1, math.ceil(len(points) / scoring.at_a_time)))  # chunks of equal size
    for first in range(0, len(points), max(1, at_a_time)):
        scores = scoring.of(points[first : first + at_a_time])
        if options.one_name_per_place is not None:
            found = _single(scores.all())
        elif scores.has_ensemble or scores.num_pairs <= (FEW_COMPETING_PAIRS if scores.competes else FEW_PAIRS):
            found = _of_all_scores(scores.all(), count)
        else:
            found = _of_high_cosines(scores, needed, None if len(best) == count else count)
        found = found[found.scores > above]
        best = best.best_with(Pairs(first + found.points, found.classes, found.scores), count)
        if len(best) == count:
            needed = best.scores[-1]
    return best


def not_nan(best_scores: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Check that no score is NaN, and return the scores.

    The best scores of points are enough for that, since a maximum is NaN if any of its inputs is.

    Raises:
        ValueError: one is NaN.
    """
    if best_scores.numel() > 0 and best_scores.amax().isnan():
        raise ValueError("a score is NaN: the detector's weights, its input or the text rows are broken")
    return best_scores


def _single(scores: Float[Tensor, "P C"]) -> Pairs:
    """Return each point's best pair."""
    best, classes = scores.max(dim=1)
    return Pairs(torch.arange(len(scores), device=scores.device), classes, not_nan(best))


def _of_all_scores(scores: Float[Tensor, "P C"], count: int) -> Pairs:
    """Return the pairs that may be among the `count` best ones."""
    rows, classes = (scores >= _last_of_best(not_nan(scores), count)).nonzero().unbind(dim=1)
    return Pairs(rows, classes, scores[rows, classes])


def _of_high_cosines(scores: PairScores, needed: Float[Tensor, ""], count: int | None) -> Pairs:
    """Return the pairs that may reach the needed score, and a few others.

    Args:
        needed: the needed score.
        count: number of best pairs to find, which may raise the needed score; None keeps it as it is.
    """
    rough = scores.rough_cosines
    groups = _Groups.of(rough.values)
    if count is not None:  # the groups' highest are different pairs, so at least `count` pairs score this much
        some = _highest_of_larger_groups(groups.highest, BOUNDS_PER_PAIR * count)
        certain = scores.scores_at_least(rough.exact_at_least(some))
        needed = torch.maximum(needed, _last_of_best(certain, count))
    values_needed = not_nan(rough.values_needed(scores.cosines_needed(needed)))
    rows, classes = groups.pairs_with_at_least(values_needed, scores.num_classes)
    return Pairs(rows, classes, scores.of(rows, classes))


@dataclass(frozen=True)
class _Groups:
    """Rough cosines in G groups of `CLASSES_IN_GROUP` classes: the group g has the classes g, g + G, g + 2 G, ..."""

    values: Float[Tensor, "P M"]
    """Rough cosines of all classes; negative infinity in the padding that makes the groups equally large."""
    highest: Float[Tensor, "P G"]
    """The highest value of every group, in float32."""

    @classmethod
    def of(cls, values: Float[Tensor, "P M"]) -> "_Groups":
        missing = -values.shape[1] % CLASSES_IN_GROUP
        if missing > 0:
            values = F.pad(values, (0, missing), value=-torch.inf)
        num_groups = values.shape[1] // CLASSES_IN_GROUP
        if values.device.type != "cpu":
            return cls(values, values.unflatten(1, (CLASSES_IN_GROUP, num_groups)).amax(dim=1).float())
        # On a CPU pooling is three times as fast.
        as_map = values.view(-1, CLASSES_IN_GROUP, 1, num_groups).permute(0, 3, 1, 2)
        return cls(values, F.max_pool2d(as_map, (CLASSES_IN_GROUP, 1)).flatten(1).float())

    def pairs_with_at_least(
        self, values_needed: Float[Tensor, " P"], num_classes: int
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """Return points and classes of the pairs with at least the value needed at their point, by point, then class.

        Args:
            values_needed: lowest value of a pair, for each point.
            num_classes: number of columns that are not padding.

        Raises:
            ValueError: a value is NaN.
        """
        num_groups = self.highest.shape[1]
        rows, group = (not_nan(self.highest) >= values_needed[:, None]).nonzero().unbind(dim=1)
        # All classes of the groups whose highest value is high enough.
        classes = group[:, None] + num_groups * torch.arange(CLASSES_IN_GROUP, device=rows.device)
        rows, classes = torch.broadcast_tensors(rows[:, None], classes)
        passes = self.values[rows, classes].float() >= values_needed[rows]
        pairs = (num_classes * rows + classes)[passes & (classes < num_classes)].sort().values
        return pairs // num_classes, pairs % num_classes


def _highest_of_larger_groups(highest: Float[Tensor, "P G"], count: int) -> Float[Tensor, "P N"]:
    """Join groups to larger ones, and return their highest values: at least `count`, if there are as many groups.

    The last groups are left out if they do not fill larger ones.
    """
    num_joined = min(highest.numel() // count, highest.shape[1])
    if num_joined < 2:
        return highest
    columns = highest.shape[1] // num_joined
    return highest[:, : num_joined * columns].unflatten(1, (num_joined, columns)).amax(dim=1)


def _last_of_best(scores: Float[Tensor, "P N"], count: int) -> Float[Tensor, ""]:
    """Return the lowest of the `count` best scores; 0 if there are fewer."""
    if scores.numel() < count:
        return scores.new_zeros(())
    if scores.device.type != "cpu":
        return scores.flatten().topk(count, sorted=False).values.amin()
    # On a CPU NumPy's selection is 3 to 9 times as fast.
    place = scores.numel() - count
    return scores.new_tensor(np.partition(scores.numpy(), place, axis=None)[place])
