"""A data class for everything that an evaluation of detections measures."""

from dataclasses import dataclass

import numpy as np

from ovd.data.truth import Truth
from ovd.evaluation.decision_report import DecisionReport
from ovd.evaluation.report import Evaluation
from ovd.evaluation.results import Results
from ovd.shapes import Bool


@dataclass(frozen=True)
class Measures:
    """All measures of a set of detections, with the truth and the detections themselves."""

    evaluation: Evaluation
    decisions: DecisionReport
    truth: Truth
    """Truth that judges the decisions."""
    results: Results
    groups: dict[str, Bool[np.ndarray, " C"]]
    """Mask of the truth's categories for each group, `all` first."""
