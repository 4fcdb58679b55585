"""Text rows of the classes to detect, and how their scores are combined with CLIP's."""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from ovd.model.pair_scores import ScoreEnsemble


@dataclass(frozen=True, eq=False)
class QueryTexts:
    """Classes to detect together; detections name them by their rows."""

    text: Float[Tensor, "C D"]
    """Unit rows, one per class; without rows there are no detections."""
    ensemble: ScoreEnsemble | None = None
    """Combination of the scores with CLIP's; None for the detector's own scores."""

    def __len__(self) -> int:
        """Return C, the number of classes."""
        return len(self.text)

    def take(self, rows: Int[Tensor, " c"]) -> "QueryTexts":
        """Return the classes at these rows."""
        ensemble = self.ensemble
        if ensemble is not None:
            ensemble = replace(ensemble, weights=ensemble.weights[rows])
        return QueryTexts(self.text[rows], ensemble)
