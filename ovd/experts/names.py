"""Routing of queries to the base detector and the experts by their text rows.

Equal words have equal text rows, so a query is a name or synonym of an expert if its row is one of the expert's. A
query in other words may be given to an expert whose names are nearer to it than the base detector's names by more than
a margin, which is fitted on names held out one at a time.
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
    """One name per class."""
    text: Float[Tensor, "K D"]
    """Unit rows of the names, alone and with their synonyms, and of each synonym."""
    base_text: Float[Tensor, "T D"]
    """Unit rows of the names that the base detector was trained on."""
    margin: float
    """Margin by which a query must be nearer to `text` than to `base_text` to be given to the expert."""
    learned_text: Float[Tensor, "K D"] | None = None
    """Unit rows learned in place of those of `text`; None if none were learned."""

    def detection_rows(self, text: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
        """Return the rows to detect with for the expert's queries: those learned for the nearest names, if any were."""
        return text if self.learned_text is None else self.learned_text[(text @ self.text.T).argmax(dim=1)]

    def are_own_names(self, text: Float[Tensor, "C D"]) -> Bool[Tensor, " C"]:
        """Return which rows are the expert's own."""
        return nearness_to(text, self.text) > 1 - SAME_TEXT

    def lead(self, text: Float[Tensor, "C D"]) -> Float[Tensor, " C"]:
        """Compute each row's nearness to the expert's names minus its nearness to the base detector's names and minus
        the margin; 0 where this is negative, and for the base detector's own names."""
        to_base = nearness_to(text, self.base_text)
        lead = nearness_to(text, self.text) - to_base - self.margin
        return lead.masked_fill(to_base > 1 - SAME_TEXT, 0).clamp(min=0)


def route(text: Float[Tensor, "C D"], experts: Sequence[ExpertNames], *, nearest: bool) -> list[Int[Tensor, " _"]]:
    """Assign each query to the base detector or to experts.

    A query that is an expert's name or synonym goes to that expert, and to all experts that share it. Any other query
    goes to the base detector, or, with `nearest`, to the expert with the highest lead above 0 (`ExpertNames.lead`).

    Args:
        text: unit rows of the queries.
        nearest: whether experts also answer near queries.

    Returns:
        The rows of the queries that the base detector answers, then those of each expert.
    """
    own = torch.stack([names.are_own_names(text) for names in experts])
    if nearest:
        above = torch.stack([names.lead(text) for names in experts])
        own |= (above > 0) & (above == above.amax(dim=0)) & ~own.any(dim=0)
    return [rows.nonzero().squeeze(1) for rows in (~own.any(dim=0), *own)]


def fit_margin(new: Float[Tensor, "K D"], of_name: Int[Tensor, " K"], base: Float[Tensor, "T D"]) -> float:
    """Fit the margin that best separates queries near to an expert's names from those near to the base detector's.

    Each name is held out in turn and treated as a query in other words, which should go to its own side. The margin
    maximizes the share of names that do, averaged over the two sides; of equally good margins the highest is taken,
    which leaves most queries to the base detector.

    Args:
        new: the expert's unit rows.
        of_name: the name that each row of `new` belongs to.
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
