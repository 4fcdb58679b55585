"""The module that is exported: a detector with all of its post-processing, and text rows as an input."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ovd.boxes import clip_boxes, has_area
from ovd.export.suppression import nms_mask
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.pair_scores import all_scores, sigmoid
from ovd.model.score_calibration import EPSILON, ScoreCalibration, ScoreMap, nearness_to
from ovd.model.similarity import TextClassifier

NOTHING = -1.0
"""Score of a discarded pair, and of the padding of a list."""


class DetectionGraph(nn.Module):
    """A module from padded images and text rows to the detections of each image.

    Scores, selection, suppression and calibration are those of `ovd.inference.Inference`, for a whole batch at once;
    every size may differ from one call to the next.
    """

    trained_text: Tensor

    def __init__(self, detector: Detector, options: DetectionOptions, calibration: ScoreCalibration | None):
        """
        Args:
            detector: in eval mode.
            options: settings of post-processing, without a second look.
            calibration: calibration of the detector; its score map is used if it was fitted with these options.
        """
        super().__init__()
        assert options.second_look is None, "a graph has no crops"
        self.detector = detector
        self.options = options
        self.name_bias = 0.0 if calibration is None else calibration.name_bias
        has_map = calibration is not None and calibration.applies_to(options)
        self.score_map = calibration.score_map if has_map and calibration is not None else None
        # Threshold for scores before the map, which suppression works on; `score_threshold` is for scores after it.
        self.min_score = 0.0 if has_map else options.score_threshold
        trained_text = torch.zeros(0, 0) if calibration is None else calibration.trained_text.float()
        self.register_buffer("trained_text", trained_text, persistent=False)

    def forward(
        self, images: UInt8[Tensor, "B H W 3"], sizes: Int[Tensor, "B 2"], text: Float[Tensor, "C D"]
    ) -> tuple[Float[Tensor, "B N 4"], Float[Tensor, "B N"], Int[Tensor, "B N"], Int[Tensor, " B"]]:
        """Detect in a batch of images.

        Args:
            images: RGB, padded at the right and bottom.
            sizes: height and width before padding.
            text: unit rows.

        Returns:
            Boxes, scores and classes of each image, best first, and the number of its detections. Further entries have
            a box and a score of 0, and the class -1.
        """
        nearness = nearness_to(text, self.trained_text) if len(self.trained_text) else torch.zeros_like(text[:, 0])
        boxes, scores = self._points(images.permute(0, 3, 1, 2), sizes, text, nearness)
        boxes, scores, classes = self._best_pairs(boxes, scores)
        scores = self._suppressed(boxes, scores, classes, text)
        if self.score_map is not None:
            mapped = probabilities(self.score_map, scores, nearness[classes])
            is_wanted = (scores > NOTHING) & (mapped > self.options.score_threshold)
            scores = torch.where(is_wanted, mapped, NOTHING)
        scores, order = scores.topk(_smaller(self.options.max_detections, scores.shape[1]), dim=1)
        boxes, classes = _gather(boxes, order), classes.gather(1, order)
        is_detection = scores > NOTHING
        return (
            boxes * is_detection[..., None].to(boxes.dtype),
            scores.clamp(min=0),
            torch.where(is_detection, classes, -1),
            is_detection.sum(dim=1),
        )

    def _points(
        self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"], text: Float[Tensor, "C D"], nearness: Tensor
    ) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P C"]]:
        """Return clipped boxes and scores of all points; points in the padding or without a box score `NOTHING`."""
        predictions = self.detector(images)
        boxes = clip_boxes(predictions.boxes, sizes[:, None])
        is_scored = ~self.detector.points(images).are_unscored(sizes) & has_area(boxes)
        scores = all_scores(predictions, self._classifier(text, nearness), self.options)
        return boxes, torch.where(is_scored[..., None], scores, NOTHING)

    def _classifier(self, text: Float[Tensor, "C D"], nearness: Float[Tensor, " C"]) -> TextClassifier:
        classifier = self.detector.classifier(text)
        return classifier if self.name_bias == 0 else replace(classifier, name_penalty=self.name_bias * nearness)

    def _best_pairs(
        self, boxes: Float[Tensor, "B P 4"], scores: Float[Tensor, "B P C"]
    ) -> tuple[Float[Tensor, "B K 4"], Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """Return boxes, scores and classes of the best pairs of a point and a class, best first."""
        best = scores.amax(dim=2)
        points = best.topk(_smaller(self.options.candidates, best.shape[1]), dim=1).indices.sort(dim=1).values
        num_classes = scores.shape[2]
        scores = scores.gather(1, points[..., None].expand(-1, -1, num_classes))
        if self.options.one_name_per_place is not None:
            classes = torch.arange(num_classes, device=scores.device)
            scores = torch.where(classes == scores.argmax(dim=2, keepdim=True), scores, NOTHING)
        pairs = scores.flatten(1)
        values, order = pairs.topk(_smaller(self.options.candidates, pairs.shape[1]), dim=1)
        values = torch.where(values > self.min_score, values, NOTHING)
        return _gather(boxes, points.gather(1, order // num_classes)), values, order % num_classes

    def _suppressed(
        self,
        boxes: Float[Tensor, "B K 4"],
        scores: Float[Tensor, "B K"],
        classes: Int[Tensor, "B K"],
        text: Float[Tensor, "C D"],
    ) -> Float[Tensor, "B K"]:
        """Return the scores after suppression; suppressed boxes score `NOTHING`."""
        options = self.options
        if options.one_name_per_place is not None:
            kept = nms_mask(boxes, scores[:, None], iou=options.one_name_per_place, score_threshold=0.0)
            scores = torch.where(kept, scores, NOTHING)
        # One row per class, so that each class is suppressed by itself.
        by_class = (text[:, 0] * 0 + NOTHING)[None, :, None].expand(scores.shape[0], -1, scores.shape[1])
        by_class = by_class.scatter(1, classes[:, None], scores[:, None])
        kept = nms_mask(boxes, by_class, iou=options.nms_iou, score_threshold=self.min_score)
        return torch.where(kept, scores, NOTHING)


def probabilities(
    score_map: ScoreMap, scores: Float[Tensor, "B N"], nearness: Float[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Apply a `ScoreMap` in float32, which every runtime supports."""
    inner = scores.clamp(EPSILON, 1 - EPSILON)
    log_odds = score_map.slope * inner.log() - score_map.curve * (1 - inner).log() + score_map.offset
    return sigmoid(log_odds + score_map.distance * (1 - nearness))


def _gather(boxes: Float[Tensor, "B P 4"], rows: Int[Tensor, "B K"]) -> Float[Tensor, "B K 4"]:
    return boxes.gather(1, rows[..., None].expand(-1, -1, 4))


def _smaller(limit: int, size: int | Tensor) -> Any:
    """Return the smaller of a limit and a size; the size is a tensor while the module is traced."""
    return torch.minimum(torch.tensor(limit), size) if isinstance(size, Tensor) else min(limit, size)
