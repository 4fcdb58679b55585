"""Which queries an expert answers, decided by their text rows: those of its own names, and near ones if asked to.

The same words have the same text row, so a query is one of an expert's names, or a synonym, if its row is one of
theirs. A query in other words may be given to the expert whose names are nearer to it than the base detector's are, by
a margin that is fitted on names held out one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.model.score_calibration import SAME_TEXT, nearness_to


@dataclass(frozen=True)
class ExpertNames:
    """The names that an expert was trained on."""

    names: tuple[str, ...]
    """One per class."""
    text: Float[Tensor, "K D"]
    """Unit rows of the names, alone and with their synonyms, and of each synonym."""
    base_text: Float[Tensor, "T D"]
    """Unit rows of the names that the base detector was trained on."""
    margin: float
    """A query that is nearer to `text` than to `base_text`, by more than this, may be given to the expert."""
    answers: Float[Tensor, "K D"] | None = None
    """Unit rows that were learned for those of `text`; None if none were."""

    def answering(self, text: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
        """The rows to detect with for queries that the expert answers: those learned for the nearest of its names."""
        return text if self.answers is None else self.answers[(text @ self.text.T).argmax(dim=1)]

    def are_own(self, text: Float[Tensor, "C D"]) -> Bool[Tensor, " C"]:
        """Which rows are one of the expert's."""
        return nearness_to(text, self.text) > 1 - SAME_TEXT

    def lead(self, text: Float[Tensor, "C D"]) -> Float[Tensor, " C"]:
        """Of each row, its nearness to the expert's names less that to the base detector's and less the margin; 0 where
        that is negative, and for the base detector's own names."""
        to_base = nearness_to(text, self.base_text)
        lead = nearness_to(text, self.text) - to_base - self.margin
        return lead.masked_fill(to_base > 1 - SAME_TEXT, 0).clamp(min=0)


def route(text: Float[Tensor, "C D"], experts: Sequence[ExpertNames], *, nearest: bool) -> list[Int[Tensor, " _"]]:
    """The rows of the queries that the base detector answers, and then of those that each expert does.

    An expert answers the queries that are its own names or synonyms; so do several experts that share one. All others
    go to the base detector, or with `nearest` to the expert whose margin they are above most; but not a name that the
    base detector was trained on.

    Args:
        text: unit rows of the queries.
        nearest: whether experts answer near queries, too.
    """
    own = torch.stack([names.are_own(text) for names in experts])
    if nearest:
        above = torch.stack([names.lead(text) for names in experts])
        own |= (above > 0) & (above == above.amax(dim=0)) & ~own.any(dim=0)
    return [rows.nonzero().squeeze(1) for rows in (~own.any(dim=0), *own)]


def fit_margin(new: Float[Tensor, "K D"], of_name: Int[Tensor, " K"], base: Float[Tensor, "T D"]) -> float:
    """The lead that best tells queries near to an expert's names from those near to the base detector's.

    Each name is held out in turn and asked as if it were neither: it should go to the side that it is of. The margin
    has the highest mean of the two sides' shares that do; of several, the highest, which leaves most to the base.

    Args:
        new: the expert's unit rows.
        of_name: the name that each of them belongs to.
        base: unit rows of the base detector's names.
    """
    same = of_name[:, None] == of_name
    lead_of_new = (new @ new.T).masked_fill(same, 0).amax(dim=1) - nearness_to(new, base)
    others = (base @ base.T).fill_diagonal_(0).amax(dim=1) if len(base) else torch.zeros(0)
    lead_of_base = nearness_to(base, new) - others
    candidates = torch.cat([lead_of_new, lead_of_base]).unique()
    middles = torch.cat([candidates[:1] - SAME_TEXT, (candidates[1:] + candidates[:-1]) / 2, candidates[-1:]])
    shares = (lead_of_new > middles[:, None]).float().mean(dim=1)
    if len(base):
        shares = shares + (lead_of_base <= middles[:, None]).float().mean(dim=1)
    return float(middles[shares == shares.max()].max())
