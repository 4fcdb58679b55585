"""Post-processing: from predictions to detections, in pixels of the original images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import nms

from ovd.boxes import clip_boxes, rescale_boxes
from ovd.model.compiled import compiled
from ovd.model.detection_options import DetectionOptions
from ovd.model.similarity import CHUNK_ELEMENTS, TextClassifier
from ovd.structures import Detections, Predictions


@dataclass(frozen=True)
class ScoreEnsemble:
    """Combination of the detector's scores with CLIP's, for predictions that include the dense CLIP feature."""

    weights: Float[Tensor, " C"]
    """CLIP's weight in each class's probability, 0 to 1."""
    clip_scale: float
    """CLIP's factor from cosine to logit; its probability is the softmax over the vocabulary's classes."""


@dataclass(frozen=True)
class _ImagePredictions:
    """The predictions at P points of one image."""

    embeddings: Float[Tensor, "P D"]
    boxes: Float[Tensor, "P 4"]
    quality: Float[Tensor, " P"]
    clip: Float[Tensor, "P D"] | None

    def __getitem__(self, points: Int[Tensor, " p"]) -> "_ImagePredictions":
        clip = None if self.clip is None else self.clip[points]
        return _ImagePredictions(self.embeddings[points], self.boxes[points], self.quality[points], clip)


Scores = Callable[[_ImagePredictions], Float[Tensor, "P C"]]


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    classifier: TextClassifier,
    *,
    input_sizes: Int[Tensor, "B 2"],
    original_sizes: Int[Tensor, "B 2"],
    options: DetectionOptions,
    ensemble: ScoreEnsemble | None = None,
    use_compiled: bool = False,
) -> tuple[Detections, ...]:
    """Score, select, suppress duplicates and rescale.

    The score of a point for a class is sqrt(class probability * sigmoid(quality)). Per image, boxes are clipped to the
    image and those left without area are dropped; the `candidates` best (point, class) pairs above `score_threshold` go
    through class-aware NMS, and the `max_detections` best are returned, best first. Pairs of equal score are in the
    order of point, then class. With an `ensemble` the class probability is the geometric mean of the detector's and
    CLIP's, weighted by class.

    Args:
        classifier: of the vocabulary to detect, at least one class; `Detections.classes` are its rows.
        input_sizes: height and width of the detector's input images before padding.
        original_sizes: height and width of the original images, which the boxes are rescaled to.
        use_compiled: whether torch.compile fuses the computation of each pair; equal except for rounding.

    Raises:
        ValueError: the predictions or text rows contain NaN.
    """
    assert len(classifier) > 0, "postprocess needs at least one class"
    assert ensemble is None or predictions.clip is not None, "score ensembling needs the dense CLIP feature"
    join = compiled(_join_scores) if use_compiled else _join_scores

    def scores_of(some: _ImagePredictions) -> Float[Tensor, "P C"]:
        probability = classifier.logits(some.embeddings).sigmoid()
        if ensemble is not None:
            assert some.clip is not None
            named = (ensemble.clip_scale * some.clip @ classifier.text.T).softmax(dim=1)
            weights = ensemble.weights.to(named.device)
            probability = probability ** (1 - weights) * named**weights
        scores = join(probability, some.quality)
        if scores.isnan().any():
            raise ValueError("a score is NaN: the detector's weights, its input or the text rows are broken")
        return scores

    points_at_a_time = max(1, CHUNK_ELEMENTS // len(classifier))
    clips = [None] * len(input_sizes) if predictions.clip is None else predictions.clip
    per_image = zip(predictions.embeddings, predictions.boxes, predictions.quality, clips, strict=True)
    return tuple(
        _postprocess_image(_ImagePredictions(*image), scores_of, input_size, original_size, options, points_at_a_time)
        for image, input_size, original_size in zip(per_image, input_sizes, original_sizes, strict=True)
    )


def _join_scores(probability: Float[Tensor, "P C"], quality: Float[Tensor, " P"]) -> Float[Tensor, "P C"]:
    return torch.sqrt(probability * torch.sigmoid(quality[:, None].float()))


def _postprocess_image(
    image: _ImagePredictions,
    scores_of: Scores,
    input_size: Int[Tensor, "2"],
    original_size: Int[Tensor, "2"],
    options: DetectionOptions,
    points_at_a_time: int,
) -> Detections:
    if image.boxes.isnan().any():
        raise ValueError("the detector predicted a NaN box: its weights or its input are broken")
    boxes = clip_boxes(image.boxes.float(), input_size)
    visible = _has_area(boxes).nonzero().squeeze(1)
    boxes, image = boxes[visible], image[visible]
    point, classes, scores = _best_pairs(image, scores_of, options, points_at_a_time)
    boxes = boxes[point]

    # NMS is class-aware because the boxes of each class are shifted by a distance of its own, as in torchvision's
    # batched_nms, but in float64: in float32 the shifts of a thousand classes would round fractions of a pixel. On a
    # CPU batched_nms loops over the classes instead, which is many times slower.
    shifts = classes * (input_size.max() + 1)
    kept = nms(boxes.double() + shifts[:, None], scores.double(), options.nms_iou)[: options.max_detections]
    return Detections(
        boxes=rescale_boxes(boxes[kept], input_size, original_size), scores=scores[kept], classes=classes[kept]
    )


def _best_pairs(
    image: _ImagePredictions, scores_of: Scores, options: DetectionOptions, points_at_a_time: int
) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"], Float[Tensor, " K"]]:
    """Point, class and score of an image's best (point, class) pairs, best first."""
    # The best pairs are at the `candidates` points with the highest best score: their best pairs alone score no less
    # than any pair of the other points. Ties are ordered as in one sort of all pairs, since both sorts are stable.
    candidates = options.candidates
    chosen = torch.arange(len(image.embeddings), device=image.embeddings.device)
    if len(chosen) > candidates:
        chunks = chosen.split(points_at_a_time)
        best_scores = torch.cat([scores_of(image[chunk]).amax(dim=1) for chunk in chunks])
        chosen = best_scores.argsort(descending=True, stable=True)[:candidates].sort().values
    pairs = []
    for chunk in chosen.split(points_at_a_time):
        scores = scores_of(image[chunk])
        wanted = scores > options.score_threshold
        if scores.numel() > candidates:  # only pairs that can be among the best are sorted
            wanted &= scores >= scores.flatten().topk(candidates, sorted=False).values.amin()
        rows, classes = wanted.nonzero().unbind(dim=1)
        pairs.append((chunk[rows], classes, scores[rows, classes]))
    point, classes, scores = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    scores, order = scores.sort(descending=True, stable=True)
    order = order[:candidates]
    return point[order], classes[order], scores[:candidates]


def _has_area(boxes: Float[Tensor, "P 4"]) -> Bool[Tensor, " P"]:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
