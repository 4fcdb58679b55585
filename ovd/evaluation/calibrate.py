"""Fit of a detector's calibration (score_calibration.py) on images and names that were held out of its training.

The bias towards trained names, times a name's nearness to them, is subtracted from the cosines with that name. It is
fitted to make the names of the true boxes most likely, by the mean log of the softmax over all names. Held-out and
trained classes count equally, as if there were as many held-out classes as trained ones; the scale of the softmax is
fitted, too.

The map is fitted on detections that are known to be right or wrong. A detection is right at IoU 0.5 with a true box of
its class, and wrong if no such box can be missing or if it lies on a true box of another class. Other detections of
classes that are not annotated in their image are known to be wrong only for verified negatives, whose weight makes them
represent all such classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_iou

from ovd.data.index import AnnotationIndex, Labels
from ovd.data.loading.loader import LoaderOptions
from ovd.engine.signals import StopRequest
from ovd.format_count import format_count
from ovd.inference import Inference
from ovd.model.assign import assign_fcos, nearest_matched_points
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import SAME_TEXT, ScoreCalibration, ScoreMap, map_inputs, nearness_to
from ovd.model.similarity import text_cosines
from ovd.progress import progress
from ovd.structures import Detections

BIASES = np.linspace(0.0, 0.15, 61)
"""Values of the bias that are tried."""
SCALES = (10.0, 20.0, 30.0, 40.0, 60.0, 80.0)
"""Scales of the softmax that are tried."""
MATCH_IOU = 0.5
RIDGE = 1e-6
"""Ridge per unit of weight, which keeps the map's fit finite if scores separate right from wrong perfectly."""
NEWTON_STEPS = 50
MAX_HALVINGS = 30
MIN_RIGHT = 20
"""Minimum number of right detections of held-out names for fitting the map's term for them."""


class CalibrationError(ValueError):
    """Error raised if there is nothing to calibrate on."""


@dataclass(frozen=True)
class JudgedDetections:
    """Detections that are known to be right or wrong."""

    scores: Float[Tensor, " K"]
    classes: Int[Tensor, " K"]
    right: Bool[Tensor, " K"]
    weights: Float[Tensor, " K"]
    """Number of detections that each one represents."""


def calibrate(
    inference: Inference,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    loading: LoaderOptions,
    *,
    held_out: Bool[np.ndarray, " C"],
    is_exhaustive: bool,
    name_bias: float | None = None,
    stop: StopRequest | None = None,
) -> ScoreCalibration:
    """Fit the calibration on images that were not trained on.

    Args:
        inference: the detector, without a calibration, and how it is run.
        text: one unit row per category of `index`, in its order.
        index: the images, with the vocabulary of the training.
        held_out: mask of the names that were not trained on.
        is_exhaustive: whether every object of every class has a box.
        name_bias: the bias towards trained names; None fits it, or takes 0 if no name was held out.
        stop: a request to stop, which is checked at every image.

    Raises:
        CalibrationError: no detection is known to be right.
        DataError: an image is missing or cannot be read.
        Stopped: a stop was requested.
    """
    stop = stop or StopRequest()
    trained = text[torch.from_numpy(~held_out)]
    nearness = nearness_to(text, trained)
    bias = name_bias or 0.0
    if name_bias is None and held_out.any():
        bias = _fit_bias(inference, text, index, loading, nearness, held_out, stop)
    # A map with a slope and a curve of 1 does not change scores.
    unmapped = ScoreCalibration(bias, ScoreMap(1.0, 1.0, 0.0, 0.0), 0.5, inference.options, trained)
    corrected = replace(inference, calibration=unmapped)
    found = stop.raise_if_received(corrected.dataset(QueryTexts(text), index, loading))
    rows = {image_id: row for row, image_id in enumerate(index.image_ids.tolist())}
    parts = [
        judge_detections(
            detections, index.record(rows[image_id]).labels, num_classes=len(text), is_exhaustive=is_exhaustive
        )
        for image_id, detections in progress(found, len(index), "calibrating scores")
    ]
    judged = JudgedDetections(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(JudgedDetections))
    )
    if not judged.right.any():
        raise CalibrationError(
            f"{index.path}: no true box in {format_count(len(index), 'held-out image')} is found; cannot calibrate"
        )
    score_map = fit_map(judged, nearness)
    probabilities = score_map(judged.scores, nearness[judged.classes])
    threshold = best_threshold(probabilities, judged.weights, num_true=len(index.boxes.values))
    return ScoreCalibration(bias, score_map, threshold, inference.options, trained)


def _fit_bias(
    inference: Inference,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    loading: LoaderOptions,
    nearness: Float[Tensor, " C"],
    held_out: Bool[np.ndarray, " C"],
    stop: StopRequest,
) -> float:
    """Fit the most likely bias; 0 unless there are true boxes of both trained and held-out names."""
    at_boxes = stop.raise_if_received(_at_true_boxes(inference, text, index, loading))
    cosines, classes = (torch.cat(part) for part in zip(*at_boxes, strict=True))
    is_out = torch.from_numpy(held_out)[classes]
    if not is_out.any() or is_out.all():
        return 0.0
    weights = (1 / torch.bincount(classes, minlength=len(text)))[classes].double()
    for group in (is_out, ~is_out):
        weights[group] /= weights[group].sum()
    # As if there were as many held-out names as trained ones; otherwise trained names would have few to lose to.
    out = torch.from_numpy(held_out)
    more = torch.where(out, math.log(int((~out).sum()) / int(out.sum())), 0.0)
    likelihoods = {}
    for bias, scale in stop.raise_if_received(product(BIASES.tolist(), SCALES)):
        logits = scale * (cosines - bias * nearness) + more
        likelihoods[bias, scale] = -float((weights * F.cross_entropy(logits, classes, reduction="none")).sum())
    bias, _ = max(likelihoods, key=lambda pair: likelihoods[pair])
    return bias


def _at_true_boxes(
    inference: Inference, text: Float[Tensor, "C D"], index: AnnotationIndex, loading: LoaderOptions
) -> Iterator[tuple[Float[Tensor, "R C"], Int[Tensor, " R"]]]:
    """Yield the cosines with all names at the points of true boxes, and their classes; boxes without a point are left
    out."""
    batches = inference.batches(index, loading)
    for batch, _ in progress(batches, len(batches), "measuring the bias towards trained names"):
        batch = batch.to(inference.device)
        predictions, points = inference.predict(batch.images, batch.sizes), inference.detector.points(batch.images)
        matched = assign_fcos(points, batch.targets, sizes=batch.sizes).matched
        for row, targets in enumerate(batch.targets):
            nearest = nearest_matched_points(points, targets.boxes, matched[row])
            at_box = predictions.embeddings[row, nearest[nearest >= 0]]
            yield text_cosines(at_box, text.to(inference.device)).cpu(), targets.classes[nearest >= 0].cpu()


def judge_detections(found: Detections, labels: Labels, *, num_classes: int, is_exhaustive: bool) -> JudgedDetections:
    """Select the detections in an image that are known to be right or wrong."""
    true_boxes, true_classes = torch.from_numpy(labels.boxes), torch.from_numpy(labels.classes)
    overlaps = box_iou(found.boxes, true_boxes) >= MATCH_IOU
    own = found.classes[:, None] == true_classes
    right, on_another = (overlaps & own).any(dim=1), (overlaps & ~own).any(dim=1)
    in_crowd = (box_iou(found.boxes, torch.from_numpy(labels.crowd_boxes)) > 0).any(dim=1)
    incomplete = torch.isin(found.classes, torch.from_numpy(labels.not_exhaustive_classes)) | in_crowd
    present = torch.isin(found.classes, true_classes) & ~incomplete
    weights = torch.zeros(len(found.scores), dtype=torch.float64)
    if is_exhaustive:
        weights[~incomplete] = 1.0
    else:
        negative = torch.isin(found.classes, torch.from_numpy(labels.negative_classes))
        num_unknown = num_classes - len(np.union1d(labels.classes, labels.not_exhaustive_classes))
        weights[negative] = num_unknown / max(1, len(np.unique(labels.negative_classes)))
    weights[right | on_another | present] = 1.0
    known = weights > 0
    return JudgedDetections(found.scores[known], found.classes[known], right[known], weights[known])


def fit_map(judged: JudgedDetections, nearness: Float[Tensor, " C"]) -> ScoreMap:
    """Fit beta calibration by weighted logistic regression, with slopes that are not negative."""
    nearness_of_each = nearness[judged.classes]
    inputs = map_inputs(judged.scores, nearness_of_each)
    right, weights = judged.right.double(), judged.weights.double()
    used = [0, 1, 2, 3] if int(right[nearness_of_each < 1 - SAME_TEXT].sum()) >= MIN_RIGHT else [0, 1, 2]
    while True:
        fitted = _logistic_regression(inputs[:, used], right, weights)
        negative = [column for column, weight in zip(used, fitted.tolist(), strict=True) if column < 2 and weight < 0]
        if not negative:
            break
        used.remove(negative[0])
    result = torch.zeros(4, dtype=torch.float64)
    result[used] = fitted
    return ScoreMap(*result.tolist())


def _logistic_regression(
    inputs: Float[Tensor, "K F"], right: Float[Tensor, " K"], weights: Float[Tensor, " K"]
) -> Float[Tensor, " F"]:
    """Fit a logistic regression by Newton's method, with a ridge; a step that would raise the loss is halved until it
    does not."""

    def loss(coefficients: Float[Tensor, " F"]) -> Float[Tensor, ""]:
        logits = inputs @ coefficients
        return (weights * (F.softplus(logits) - right * logits)).sum() + coefficients @ ridge @ coefficients / 2

    fitted = torch.zeros(inputs.shape[1], dtype=torch.float64)
    ridge = RIDGE * weights.sum() * torch.eye(len(fitted), dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        probability = (inputs @ fitted).sigmoid()
        gradient = inputs.T @ (weights * (probability - right)) + ridge @ fitted
        curvature = (inputs * (weights * probability * (1 - probability))[:, None]).T @ inputs + ridge
        step = torch.linalg.solve(curvature, gradient)
        highest = loss(fitted) * (1 + 1e-12)  # tolerance for rounding once it has converged
        for _ in range(MAX_HALVINGS):
            if loss(fitted - step) <= highest:
                break
            step = step / 2
        fitted = fitted - step
        if step.abs().max() < 1e-9:
            break
    return fitted


def best_threshold(probabilities: Float[Tensor, " K"], weights: Float[Tensor, " K"], *, num_true: int) -> float:
    """Return the probability with the highest expected F1 of the detections at or above it.

    Args:
        weights: number of detections that each one represents.
        num_true: number of true boxes.
    """
    ordered, order = probabilities.double().sort(descending=True)
    weights = weights.double()[order]
    f1 = 2 * (weights * ordered).cumsum(0) / (weights.cumsum(0) + num_true)
    f1[:-1][ordered[:-1] == ordered[1:]] = 0  # detections of equal probability are reported together
    return float(ordered[int(f1.argmax())])
