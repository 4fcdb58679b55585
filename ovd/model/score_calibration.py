"""Calibration of a detector: scores become probabilities, and the bias towards trained names is corrected.

Training raises the cosines of embeddings with the trained texts, so a novel class loses its boxes to trained names.
`name_bias` is subtracted from the cosine with a text in proportion to its nearness to the trained texts. Where names
compete for a point (`competition`), it is subtracted in the softmax only, so that the correction does not change how
sure a box is.

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
"""Margin from 0 and 1 that scores are clamped to."""

NUM_BISECTIONS = 30

SAME_TEXT = 1e-4
"""Maximum distance from 1 of the cosine of two text rows that count as the same text."""

SCORE_SETTINGS = (
    "nms_iou", "competition", "competition_power", "one_name_per_place", "second_look",
)  # fmt: skip
"""Settings of post-processing that the meaning of a score depends on."""


@dataclass(frozen=True)
class ScoreMap:
    """Map from scores to probabilities.

    The log odds that a detection is right are slope * ln(score) - curve * ln(1 - score) + offset + distance * (1 -
    nearness).
    """

    slope: float
    curve: float
    offset: float
    distance: float
    """Weight of a name's distance from the trained names."""

    def __call__(self, scores: Float[Tensor, " K"], nearness: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return the probabilities that detections are right.

        Args:
            nearness: nearness of each detection's name to the trained names.
        """
        return (map_inputs(scores, nearness) @ self.weights.to(scores.device)).sigmoid().to(scores.dtype)

    def min_score(self, probability: float, nearness: Float[Tensor, " C"]) -> float:
        """Return a score below which no detection of these names has a higher probability than this.

        Args:
            nearness: nearness of each name to the trained names, at least one.
        """
        if not 0 < probability < 1:
            return 0.0 if probability <= 0 else 1.0
        wanted = math.log(probability / (1 - probability))
        # The map rises with the score, and is linear in the nearness.
        ends = [self._score_at(wanted, float(nearness.min())), self._score_at(wanted, float(nearness.max()))]
        return max(0.0, min(ends) - EPSILON)

    def _score_at(self, log_odds: float, nearness: float) -> float:
        """Find, to a thousandth of `EPSILON`, the score above which the map exceeds these log odds."""
        low, high = EPSILON, 1 - EPSILON
        for _ in range(NUM_BISECTIONS):
            middle = (low + high) / 2
            found = self.slope * math.log(middle) - self.curve * math.log(1 - middle)
            is_above = found + self.offset + self.distance * (1 - nearness) > log_odds
            low, high = (low, middle) if is_above else (middle, high)
        return low

    @property
    def weights(self) -> Float[Tensor, "4"]:
        return torch.tensor([self.slope, self.curve, self.offset, self.distance], dtype=torch.float64)


def map_inputs(scores: Float[Tensor, " K"], nearness: Float[Tensor, " K"]) -> Float[Tensor, "K 4"]:
    """Return the float64 inputs that a `ScoreMap` is linear in: ln(score), -ln(1 - score), 1, and 1 - nearness."""
    inner = scores.double().clamp(EPSILON, 1 - EPSILON)
    return torch.stack([inner.log(), -(1 - inner).log(), torch.ones_like(inner), 1 - nearness.double()], dim=1)


@dataclass(frozen=True)
class ScoreCalibration:
    """Calibration that was fitted for a detector."""

    name_bias: float
    """Number subtracted from the cosine with a text of nearness 1."""
    score_map: ScoreMap
    threshold: float
    """Probability above which boxes are best reported, with the highest expected F1 on the held-out images."""
    options: DetectionOptions
    """Settings of post-processing that the map was fitted with."""
    trained_text: Float[Tensor, "T D"]
    """Unit rows of the trained names."""

    def nearness(self, text: Float[Tensor, "C D"]) -> Float[Tensor, " C"]:
        """Return each unit row's highest cosine with a trained one, 0 to 1."""
        return nearness_to(text, self.trained_text)

    def applies_to(self, options: DetectionOptions) -> bool:
        """Return whether scores with these settings mean the same as when the map was fitted."""
        return all(getattr(options, name) == getattr(self.options, name) for name in SCORE_SETTINGS)

    def threshold_for(self, options: DetectionOptions) -> float | None:
        """Return the threshold if scores with these settings mean the same as when the map was fitted, else None."""
        return self.threshold if self.applies_to(options) else None

    def options_before_map(self, options: DetectionOptions, nearness: Float[Tensor, " C"]) -> DetectionOptions:
        """Return the settings to use before the map, which find all detections that these settings keep after it.

        Args:
            nearness: nearness of each queried name, at least one.
        """
        update: dict[str, Any] = {"score_threshold": self.score_map.min_score(options.score_threshold, nearness)}
        if self.score_map.distance:  # the map changes the order: the best are known only after it
            update["max_detections"] = max(options.candidates, options.max_detections)
        return options.model_copy(update=update)

    def to_json(self) -> dict[str, Any]:
        """Return all fields except `trained_text`."""
        return {
            "name_bias": self.name_bias,
            "score_map": asdict(self.score_map),
            "threshold": self.threshold,
            "options": {name: self.options.model_dump(mode="json")[name] for name in SCORE_SETTINGS},
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
    """Return each text's highest cosine with a trained text, at least 0; it is 1 for a trained text.

    Args:
        text, trained: unit rows.
    """
    if len(trained) == 0:
        return torch.zeros(len(text))
    return (text @ trained.T).amax(dim=1).clamp(0, 1)
