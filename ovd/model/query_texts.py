"""What is searched for in an image: the text rows of some classes, and how their scores are combined with CLIP's."""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from ovd.model.pair_scores import ScoreEnsemble


@dataclass(frozen=True, eq=False)
class QueryTexts:
    """The classes that are searched for together; those that are found are named by their rows."""

    text: Float[Tensor, "C D"]
    """Unit rows, one per class; none for no detections."""
    ensemble: ScoreEnsemble | None = None
    """Combines the scores with CLIP's; None for the detector's own."""

    def __len__(self) -> int:
        """C, the number of classes."""
        return len(self.text)

    def take(self, rows: Int[Tensor, " c"]) -> "QueryTexts":
        """The classes at these rows."""
        ensemble = self.ensemble
        if ensemble is not None:
            ensemble = replace(ensemble, weights=ensemble.weights[rows])
        return QueryTexts(self.text[rows], ensemble)
