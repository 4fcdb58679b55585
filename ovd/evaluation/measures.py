"""What an evaluation of detections measured, in one piece."""

from dataclasses import dataclass

import numpy as np

from ovd.data.truth import Truth
from ovd.evaluation.decision_report import DecisionReport
from ovd.evaluation.report import Evaluation
from ovd.evaluation.results import Results
from ovd.shapes import Bool


@dataclass(frozen=True)
class Measures:
    """All that an evaluation measured of a set of detections."""

    evaluation: Evaluation
    decisions: DecisionReport
    truth: Truth
    """That the decisions are judged by."""
    results: Results
    groups: dict[str, Bool[np.ndarray, " C"]]
    """Which of the truth's categories belong to each group, `all` first."""
