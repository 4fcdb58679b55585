"""The calibration of a detector: scores that are probabilities, and no bias towards the names that it was trained on.

Training raises the cosines of embeddings with the texts that are trained on. So a novel class loses its boxes to the
trained names. `name_bias` is taken off the cosine with a text in proportion to its nearness to the trained texts; where
names compete for a place (`competition`), in that choice alone, so that the bias is none of how sure a box is.

A score is then mapped to the probability that a box of this name is there (beta calibration, Kull et al., AISTATS
2017), with a term for names that are far from the trained ones. The map keeps the order of the boxes of a class.

The correction by nearness and the term in the map are choices of this toolkit. Both are fitted on images, and on names
of base classes, that were held out of the training (evaluation/calibrate.py).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.model.detection_options import DetectionOptions

EPSILON = 1e-6
"""Scores are clamped to this distance from 0 and 1."""

BISECTIONS = 30

SAME_TEXT = 1e-4
"""Two texts are the same if the cosine of their rows is within this of 1."""

MEANING = (
    "nms_iou", "competition", "competition_power", "one_name_per_place", "second_look",
)  # fmt: skip
"""The settings of post-processing that a score's meaning depends on."""


@dataclass(frozen=True)
class ScoreMap:
    """Log odds of a detection being right: slope * ln(score) - curve * ln(1 - score) + offset + distance * (1 -
    nearness)."""

    slope: float
    curve: float
    offset: float
    distance: float
    """Weight of a name's distance from the trained names."""

    def __call__(self, scores: Float[Tensor, " K"], nearness: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Probabilities of detections.

        Args:
            nearness: of each detection's name to the trained ones.
        """
        return (map_inputs(scores, nearness) @ self.weights.to(scores.device)).sigmoid().to(scores.dtype)

    def least_score(self, probability: float, nearness: Float[Tensor, " C"]) -> float:
        """A score below which no detection of these names has a higher probability than this.

        Args:
            nearness: of the names to the trained ones, at least one.
        """
        if not 0 < probability < 1:
            return 0.0 if probability <= 0 else 1.0
        wanted = math.log(probability / (1 - probability))
        # The map rises with the score, and is linear in the nearness.
        ends = [self._score_at(wanted, float(nearness.min())), self._score_at(wanted, float(nearness.max()))]
        return max(0.0, min(ends) - EPSILON)

    def _score_at(self, log_odds: float, nearness: float) -> float:
        """The score, to a thousandth of `EPSILON`, above which the map is above these log odds."""
        low, high = EPSILON, 1 - EPSILON
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = self.slope * math.log(middle) - self.curve * math.log(1 - middle)
            is_above = found + self.offset + self.distance * (1 - nearness) > log_odds
            low, high = (low, middle) if is_above else (middle, high)
        return low

    @property
    def weights(self) -> Float[Tensor, "4"]:
        return torch.tensor([self.slope, self.curve, self.offset, self.distance], dtype=torch.float64)


def map_inputs(scores: Float[Tensor, " K"], nearness: Float[Tensor, " K"]) -> Float[Tensor, "K 4"]:
    """What a `ScoreMap` is linear in, float64."""
    inner = scores.double().clamp(EPSILON, 1 - EPSILON)
    return torch.stack([inner.log(), -(1 - inner).log(), torch.ones_like(inner), 1 - nearness.double()], dim=1)


@dataclass(frozen=True)
class ScoreCalibration:
    """What was fitted for a detector."""

    name_bias: float
    """Taken off the cosine with a text of nearness 1."""
    score_map: ScoreMap
    threshold: float
    """The probability above which boxes are best reported: the highest expected F1 on the held-out images."""
    options: DetectionOptions
    """Settings of post-processing that the map was fitted with."""
    trained_text: Float[Tensor, "T D"]
    """Unit rows of the names that were trained on."""

    def nearness(self, text: Float[Tensor, "C D"]) -> Float[Tensor, " C"]:
        """Of each unit row, the highest cosine with one that was trained on, 0 to 1."""
        return nearness_to(text, self.trained_text)

    def applies_to(self, options: DetectionOptions) -> bool:
        """Whether scores with these settings mean what they did when the map was fitted."""
        return all(getattr(options, name) == getattr(self.options, name) for name in MEANING)

    def threshold_for(self, options: DetectionOptions) -> float | None:
        """The threshold, if scores with these settings mean what they did when the map was fitted; else None."""
        return self.threshold if self.applies_to(options) else None

    def options_before(self, options: DetectionOptions, nearness: Float[Tensor, " C"]) -> DetectionOptions:
        """Settings with which all detections are found that these keep once scores are mapped.

        Args:
            nearness: of the names that are searched for, at least one.
        """
        update: dict[str, Any] = {"score_threshold": self.score_map.least_score(options.score_threshold, nearness)}
        if self.score_map.distance:  # changes the order, so that the best are known once it has
            update["max_detections"] = max(options.candidates, options.max_detections)
        return options.model_copy(update=update)

    def to_json(self) -> dict[str, Any]:
        """All but `trained_text`."""
        return {
            "name_bias": self.name_bias,
            "score_map": asdict(self.score_map),
            "threshold": self.threshold,
            "options": {name: self.options.model_dump(mode="json")[name] for name in MEANING},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], trained_text: Float[Tensor, "T D"]) -> "ScoreCalibration":
        return cls(
            content["name_bias"],
            ScoreMap(**content["score_map"]),
            content["threshold"],
            DetectionOptions.model_validate(content["options"]),
            trained_text,
        )


def nearness_to(text: Float[Tensor, "C D"], trained: Float[Tensor, "T D"]) -> Float[Tensor, " C"]:
    """Of each text, the highest cosine with a trained one, at least 0; 1 for those that were trained on.

    Args:
        text, trained: unit rows.
    """
    if len(trained) == 0:
        return torch.zeros(len(text))
    return (text @ trained.T).amax(dim=1).clamp(0, 1)
