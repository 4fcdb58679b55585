"""Scores of (point, class) pairs: sqrt(class probability * sigmoid(quality)).

Two options change the score. Both are choices of this toolkit.

Competition (`competition`): a point's score for a class is multiplied by softmax(competition * cosine) **
competition_power, over all classes of the vocabulary. So scores from different vocabularies may not be compared. The
scores of a vocabulary's only class do not change. The correction of the bias towards trained names then applies in the
softmax only.

Ensemble: the class probability is the geometric mean of the detector's and CLIP's, weighted by class.

Without an ensemble a score increases with the pair's cosine, and everything else in it depends on the point or on the
class alone. So the cosines tell which pairs may reach a score, and the scores of all others need not be computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ovd.model.detection_options import DetectionOptions
from ovd.model.rough_cosines import COSINE_ROUNDING, RoughCosines, rough_is_faster
from ovd.model.similarity import TextClassifier, lengths, points_per_chunk
from ovd.structures import Predictions

ROUNDING = 1e-5
"""Largest relative difference between a score and the same score computed at another place of a tensor."""


@dataclass(frozen=True)
class ScoreEnsemble:
    """Combination of the detector's scores with CLIP's, for predictions that include the dense CLIP feature."""

    weights: Float[Tensor, " C"]
    """CLIP's weight in each class's probability, 0 to 1."""
    clip_scale: float
    """CLIP's factor from cosine to logit; CLIP's probability is the softmax over the vocabulary's classes."""


@dataclass(frozen=True)
class PointPredictions:
    """Predictions at P points."""

    embeddings: Float[Tensor, "P D"]
    boxes: Float[Tensor, "P 4"]
    quality: Float[Tensor, " P"]
    dense: Float[Tensor, "P D"] | None
    """The dense CLIP feature, for score ensembling."""
    mixed: Float[Tensor, "P D"] | None = None
    """Vectors whose products with text rows are the mixed cosines, after a second look."""

    @classmethod
    def join(cls, images: Sequence["PointPredictions"]) -> "PointPredictions":
        """Return the points of all images, one image after the other."""
        if len(images) == 1:
            return images[0]

        def joined(name: str) -> Any:
            values = [getattr(image, name) for image in images]
            return None if values[0] is None else torch.cat(values)

        return cls(*(joined(field.name) for field in fields(cls)))

    def __len__(self) -> int:
        """Return P, the number of points."""
        return len(self.boxes)

    def __getitem__(self, points: Int[Tensor, " p"] | slice) -> "PointPredictions":
        dense = None if self.dense is None else self.dense[points]
        mixed = None if self.mixed is None else self.mixed[points]
        return PointPredictions(self.embeddings[points], self.boxes[points], self.quality[points], dense, mixed)


class PairScores:
    """Scores of some points for all classes, computed only when a method needs them."""

    def __init__(
        self,
        points: PointPredictions,
        classifiers: Sequence[TextClassifier],
        options: DetectionOptions,
        ensemble: ScoreEnsemble | None = None,
    ) -> None:
        """
        Args:
            classifiers: classifier for all points, or one for the points of each image, with the same scale and bias.
                C is the number of classes of the largest; classes that another one lacks score 0.
        """
        self._points = points
        self._classifiers = classifiers
        self._classifier = classifiers[0]
        self._options = options
        self._ensemble = ensemble
        self._quality = sigmoid(points.quality.float())
        self.competes = options.competition > 0
        self._log_total = (options.competition * self.cosines).logsumexp(dim=1) if self.competes else None
        # The bias towards trained names affects the choice between names; with competition it is corrected only there.
        self._restored_penalty = _name_penalty(len(points), classifiers) if self.competes else None

    @cached_property
    def cosines(self) -> Float[Tensor, "P C"]:
        """Cosines that classes are chosen by, minus the classifier's `name_penalty`; -inf for classes that it lacks."""
        if len(self._classifiers) == 1:
            return _cosines(self._points, self._classifier)
        embeddings = self._points.embeddings.unflatten(0, (len(self._classifiers), -1))
        parts = (classifier.cosines(part) for part, classifier in zip(embeddings, self._classifiers, strict=True))
        return torch.cat([F.pad(part, (0, self.num_classes - part.shape[1]), value=-torch.inf) for part in parts])

    @cached_property
    def rough_cosines(self) -> RoughCosines:
        """Cosines in bfloat16 with bounds on their errors; exact cosines if these are known or not much slower."""
        if self._is_rough:
            return RoughCosines.compute(self._points.embeddings, self._lengths, self._classifier)
        return RoughCosines.from_exact(self.cosines)

    @property
    def _is_rough(self) -> bool:
        return (
            self._log_total is None
            and self._points.mixed is None
            and rough_is_faster(len(self._points), self._classifier)
        )

    @cached_property
    def _lengths(self) -> Float[Tensor, " P"]:
        return lengths(self._points.embeddings)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return max(len(classifier) for classifier in self._classifiers)

    @property
    def num_pairs(self) -> int:
        """P x C, the number of (point, class) pairs."""
        return len(self._points) * self.num_classes

    @property
    def has_bounds(self) -> bool:
        """Whether cosines tell which pairs may reach a score: without an ensemble, with one classifier."""
        return self._ensemble is None and len(self._classifiers) == 1

    def all_scores(self) -> Float[Tensor, "P C"]:
        """Compute the scores of all pairs."""
        points = (slice(None), None)
        if self._ensemble is None:
            return self._with_quality(self._probability(self.cosines, self._restored_penalty), self.cosines, points)
        assert self._points.dense is not None
        # In the log domain, since a small probability of either could become 0 before its root is taken.
        detected = F.logsigmoid(self._logit(self.cosines, self._restored_penalty))
        named = (self._ensemble.clip_scale * self._points.dense @ self._classifier.text.T).log_softmax(dim=1)
        log_probability = torch.lerp(detected, named, self._ensemble.weights.to(named))
        scores = ((log_probability + F.logsigmoid(self._points.quality.float())[points]) / 2).exp()
        return self._with_competition(scores, self.cosines, points)

    def scores_of_pairs(self, rows: Int[Tensor, " n"], classes: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Compute the scores of some pairs; without an ensemble only."""
        if self._is_rough:
            cosines = self._classifier.pair_cosines(self._points.embeddings, self._lengths, rows, classes)
        else:
            cosines = self.cosines[rows, classes]
        restored_penalty = None if self._restored_penalty is None else self._restored_penalty[classes]
        return self._with_quality(self._probability(cosines, restored_penalty), cosines, rows)

    def score_lower_bounds(self, cosines: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Compute lower bounds on each point's scores for classes with these cosines; without an ensemble only."""
        restored_penalty = None if self._restored_penalty is None else self._restored_penalty.amin()
        return self._with_quality(self._probability(cosines, restored_penalty), cosines, (slice(None), None))

    def min_cosines(self, scores: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Compute lower bounds on each point's cosines with classes that score at least this, and more than 0.

        Without an ensemble only.
        """
        scores = ((1 - ROUNDING) * scores).clamp(min=torch.finfo(torch.float32).tiny)
        log_probability = 2 * scores.log() - self._quality.log()  # of the class; a lower bound if names compete
        certain = log_probability.clamp(max=0)  # at 0 the logit is infinite: no class scores that high
        logit = certain - (-torch.expm1(certain)).log()
        lowest = (logit - self._classifier.bias) / self._classifier.scale
        if self._restored_penalty is not None:
            lowest = lowest - self._restored_penalty.amax()
        if self._log_total is not None:  # a class also needs a share of the softmax to score this
            log_share = log_probability / (2 * self._options.competition_power)
            lowest = torch.maximum(lowest, (log_share + self._log_total) / self._options.competition)
        return lowest - COSINE_ROUNDING

    def _probability(self, cosines: Float[Tensor, "*N"], restored_penalty: Tensor | None) -> Float[Tensor, "*N"]:
        return sigmoid(self._logit(cosines, restored_penalty))

    def _logit(self, cosines: Float[Tensor, "*N"], restored_penalty: Tensor | None) -> Float[Tensor, "*N"]:
        absolute = cosines if restored_penalty is None else cosines + restored_penalty
        return self._classifier.scale * absolute + self._classifier.bias

    def _with_quality(
        self, probability: Float[Tensor, "*N"], cosines: Float[Tensor, "*N"], rows: Any
    ) -> Float[Tensor, "*N"]:
        """Compute scores from the class probabilities and cosines at points.

        Args:
            rows: index into numbers per point, with a result that broadcasts with the cosines.
        """
        return self._with_competition(torch.sqrt(probability * self._quality[rows]), cosines, rows)

    def _with_competition(
        self, scores: Float[Tensor, "*N"], cosines: Float[Tensor, "*N"], rows: Any
    ) -> Float[Tensor, "*N"]:
        """Weight scores by each class's share of the softmax if names compete; `rows` is as for `_with_quality`."""
        if self._log_total is None:
            return scores
        # The softmax in the log domain, since a small probability could become 0 before its root is taken.
        log_share = self._options.competition * cosines - self._log_total[rows]
        return scores * (self._options.competition_power * log_share).exp()


@dataclass(frozen=True)
class Scoring:
    """Classes to detect, and the settings that points are scored with."""

    classifiers: Sequence[TextClassifier]
    """Classifier for all images, or one for each, with the same scale and bias."""
    options: DetectionOptions
    ensemble: ScoreEnsemble | None = None
    """Combination with CLIP's scores, for one classifier."""

    @property
    def chunk_size(self) -> int:
        """Number of points whose scores are in memory at a time."""
        most = max(self.classifiers, key=len)
        return points_per_chunk(len(most), most.text.device)

    def pair_scores(self, points: PointPredictions) -> PairScores:
        """Return the scores of some points for all classes; with a classifier for each image, of all its points."""
        return PairScores(points, self.classifiers, self.options, self.ensemble)


def all_scores(
    predictions: Predictions, classifier: TextClassifier, options: DetectionOptions
) -> Float[Tensor, "B P C"]:
    """Compute all points' scores for all classes at once, as in `postprocess` without second look or ensemble."""
    points = PointPredictions(
        predictions.embeddings.flatten(0, 1), predictions.boxes.flatten(0, 1), predictions.quality.flatten(), dense=None
    )
    return PairScores(points, [classifier], options).all_scores().unflatten(0, predictions.quality.shape)


def _name_penalty(num_points: int, classifiers: Sequence[TextClassifier]) -> Float[Tensor, "*P C"] | None:
    """Return the number subtracted from the cosines with each class: of all points, or point by point."""
    penalties = [classifier.name_penalty for classifier in classifiers if classifier.name_penalty is not None]
    if len(penalties) < 2:
        return penalties[0] if penalties else None
    return pad_sequence(penalties, batch_first=True).repeat_interleave(num_points // len(penalties), dim=0)


def _cosines(points: PointPredictions, classifier: TextClassifier) -> Float[Tensor, "P C"]:
    cosines = classifier.cosines(points.embeddings)
    if points.mixed is None:
        return cosines
    mixed = points.mixed @ classifier.text.T
    if classifier.name_penalty is not None:
        mixed = mixed - classifier.name_penalty
    return mixed + (cosines.amax(dim=1) - mixed.amax(dim=1))[:, None]


def sigmoid(logits: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Compute the sigmoid, with small probabilities as exact as large ones even in a traced graph.

    onnxruntime's own operation has errors of 1e-7, which change the order of points with low scores.
    """
    return 1 / (1 + (-logits).exp()) if torch.jit.is_tracing() else logits.sigmoid()
