"""The best (point, class) pairs of an image, found in one pass over the products of embeddings and text rows.

Points are processed chunk by chunk. A lower bound on the score of the last pair that is kept, from the pairs found so
far and from the highest cosines of groups of classes, becomes a bound on each point's cosines; only the few pairs above
it are scored and sorted. The cosines may be rough (rough_cosines.py); the scores are exact. With an ensemble, for few
pairs, or where each point stands for its best class alone, all are scored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovd.model.pair_scores import PairScores, PointPredictions

CLASSES_IN_GROUP = 32
"""Of which only the highest cosine is looked at first."""
FEW_PAIRS = 2**18
"""So many pairs are scored in less time than it takes to choose among them."""
FEW_COMPETING_PAIRS = 2**22
"""The same where names compete, since the bounds on scores are wide there."""

ScoresOf = Callable[[PointPredictions], PairScores]


@dataclass(frozen=True)
class Pairs:
    """N pairs."""

    points: Int[Tensor, " N"]
    classes: Int[Tensor, " N"]
    scores: Float[Tensor, " N"]

    def __len__(self) -> int:
        """N, the number of pairs."""
        return len(self.scores)

    def __getitem__(self, rows: Tensor | slice) -> "Pairs":
        return Pairs(self.points[rows], self.classes[rows], self.scores[rows])

    def best_with(self, later: "Pairs", count: int) -> "Pairs":
        """The best of these and of others, best first; pairs of equal score stay in the order of point, then class.

        Args:
            later: of later points.
        """
        both = Pairs(
            torch.cat([self.points, later.points]),
            torch.cat([self.classes, later.classes]),
            torch.cat([self.scores, later.scores]),
        )
        return both[both.scores.argsort(descending=True, stable=True)[:count]]


def best_pairs(
    points: PointPredictions, scores_of: ScoresOf, at_a_time: int, *, count: int, above: float, is_single: bool
) -> Pairs:
    """The pairs with the highest scores, best first; pairs of equal score are in the order of point, then class.

    Args:
        at_a_time: number of points whose cosines are in memory at a time.
        count: maximum number of pairs.
        above: they score more than this.
        is_single: whether only the best class of each point counts.

    Raises:
        ValueError: a score is NaN.
    """
    device = points.boxes.device
    none = torch.empty(0, dtype=torch.int64, device=device)
    best = Pairs(none, none, torch.empty(0, device=device))
    lowest = torch.tensor(above, device=device)
    for first in range(0, len(points), at_a_time):
        scores = scores_of(points[first : first + at_a_time])
        if is_single:
            found = _single(scores.all())
        elif scores.has_ensemble or scores.num_pairs <= (FEW_COMPETING_PAIRS if scores.competes else FEW_PAIRS):
            found = _of_all_scores(scores.all(), count)
        else:
            found = _of_high_cosines(scores, count, lowest)
        found = found[found.scores > above]
        best = best.best_with(Pairs(first + found.points, found.classes, found.scores), count)
        if len(best) == count:
            lowest = best.scores[-1]
    return best


def not_nan(best_scores: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """The same numbers, the highest of others; the highest of several is NaN if any of them is.

    Raises:
        ValueError: one is NaN.
    """
    if best_scores.isnan().any():
        raise ValueError("a score is NaN: the detector's weights, its input or the text rows are broken")
    return best_scores


def _single(scores: Float[Tensor, "P C"]) -> Pairs:
    """Each point's best pair."""
    best, classes = scores.max(dim=1)
    return Pairs(torch.arange(len(scores), device=scores.device), classes, not_nan(best))


def _of_all_scores(scores: Float[Tensor, "P C"], count: int) -> Pairs:
    """The pairs that may be among the `count` best ones."""
    rows, classes = (scores >= _last_of_best(not_nan(scores), count)).nonzero().unbind(dim=1)
    return Pairs(rows, classes, scores[rows, classes])


def _of_high_cosines(scores: PairScores, count: int, lowest: Float[Tensor, ""]) -> Pairs:
    """The pairs that may be among the `count` best ones and may score `lowest`, and a few others."""
    rough = scores.rough_cosines
    num_classes = rough.values.shape[1]
    groups = num_classes // CLASSES_IN_GROUP
    in_groups = CLASSES_IN_GROUP * groups
    highest = rough.values[:, :in_groups].unflatten(1, (CLASSES_IN_GROUP, groups)).amax(dim=1)
    highest = torch.cat([highest, rough.values[:, in_groups:]], dim=1).float()  # the last classes are in no group
    bounds = not_nan(scores.at_least(rough.at_least(highest)))
    lowest_cosines = scores.lowest_cosines(torch.maximum(lowest, _last_of_best(bounds, count)))
    rows, columns = (rough.at_most(highest) >= lowest_cosines[:, None]).nonzero().unbind(dim=1)

    members = torch.arange(CLASSES_IN_GROUP, device=rows.device)
    rows, classes = torch.broadcast_tensors(rows[:, None], columns[:, None] + groups * members)
    # Behind the groups' columns come single classes, each of which is in its column's last place.
    exists = (columns < groups)[:, None] | (members == CLASSES_IN_GROUP - 1)
    passes = exists & (rough.at_most_of(rows, classes) >= lowest_cosines[rows])
    pairs = (num_classes * rows + classes)[passes].sort().values
    rows, classes = pairs // num_classes, pairs % num_classes
    return Pairs(rows, classes, scores.of(rows, classes))


def _last_of_best(scores: Float[Tensor, "P N"], count: int) -> Float[Tensor, ""]:
    """The lowest of the `count` best scores; 0 if there are fewer."""
    if scores.numel() < count:
        return scores.new_zeros(())
    return scores.flatten().topk(count, sorted=False).values.amin()
