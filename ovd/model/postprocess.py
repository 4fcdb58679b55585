"""From predictions to detections, in pixels of the original images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

from ovd.boxes import clip_boxes, rescale_boxes
from ovd.model.compiled import compiled
from ovd.model.similarity import CHUNK_ELEMENTS, cosine_logits
from ovd.structures import Detections, Predictions


@dataclass(frozen=True)
class ScoreEnsemble:
    """Ranking by the detector and by CLIP, whose dense feature is then part of the predictions."""

    weights: Float[Tensor, " C"]
    """CLIP's share in each class's probability, 0 to 1."""
    clip_scale: float
    """CLIP's factor from cosine to logit; its probability is the softmax over the classes asked for."""


def _join_scores(probability: Float[Tensor, "P C"], quality: Float[Tensor, " P"]) -> Float[Tensor, "P C"]:
    return torch.sqrt(probability * torch.sigmoid(quality[:, None].float()))


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    text: Float[Tensor, "C D"],
    *,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    input_sizes: Int[Tensor, "B 2"],
    original_sizes: Int[Tensor, "B 2"],
    score_threshold: float = 0.0,
    nms_iou: float = 0.6,
    max_detections: int = 1000,
    candidates: int = 3000,
    ensemble: ScoreEnsemble | None = None,
    use_compiled: bool = False,
) -> tuple[Detections, ...]:
    """Score, select, suppress duplicates and rescale.

    The score of a point for a class is sqrt(class probability * sigmoid(quality)). Per image: boxes are clipped to the
    image and those left without area dropped; the `candidates` best (point, class) pairs above `score_threshold` go
    through class-aware NMS, and the `max_detections` best survivors are returned, best first. Pairs of equal score
    are in the order of point, then class. With an `ensemble` the class probability is the geometric mean of the
    detector's and CLIP's, weighted by class.

    Args:
        text: unit rows of the vocabulary that is asked for, at least one.
        use_compiled: let torch.compile fuse what is computed for each pair of point and class; equal but for rounding.
        input_sizes: height and width of the images as the detector saw them, before padding.
        original_sizes: height and width of the images the boxes are wanted for.

    Raises:
        ValueError: the predictions or text rows hold NaN.
    """
    assert len(text) > 0, "postprocess needs at least one class"
    assert ensemble is None or predictions.clip is not None, "score ensembling needs the dense CLIP feature"

    def probabilities(embeddings: Float[Tensor, "P D"], clip: Float[Tensor, "P D"] | None) -> Float[Tensor, "P C"]:
        detected = cosine_logits(embeddings, text, scale=scale, bias=bias).sigmoid()
        if ensemble is None:
            return detected
        assert clip is not None
        named = (ensemble.clip_scale * clip @ text.T).softmax(dim=1)
        weights = ensemble.weights.to(named.device)
        return detected ** (1 - weights) * named**weights

    join = compiled(_join_scores) if use_compiled else _join_scores
    clips = [None] * len(input_sizes) if predictions.clip is None else predictions.clip
    return tuple(
        _postprocess_image(
            *image,
            probabilities=probabilities,
            join=join,
            num_classes=len(text),
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
            candidates=candidates,
        )
        for image in zip(
            predictions.embeddings,
            clips,
            predictions.boxes,
            predictions.quality,
            input_sizes,
            original_sizes,
            strict=True,
        )
    )


def _postprocess_image(
    embeddings: Float[Tensor, "P D"],
    clip: Float[Tensor, "P D"] | None,
    boxes: Float[Tensor, "P 4"],
    quality: Float[Tensor, " P"],
    input_size: Int[Tensor, "2"],
    original_size: Int[Tensor, "2"],
    *,
    probabilities: Callable[..., Float[Tensor, "P C"]],
    join: Callable[..., Float[Tensor, "P C"]],
    num_classes: int,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    candidates: int,
) -> Detections:
    if boxes.isnan().any():
        raise ValueError("the detector predicted a NaN box: its weights or its input are broken")
    boxes = clip_boxes(boxes.float(), input_size)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().squeeze(1)
    boxes, embeddings, quality = boxes[visible], embeddings[visible], quality[visible]
    if clip is not None:
        clip = clip[visible]

    def scores_of(points: Int[Tensor, " p"]) -> Float[Tensor, "p C"]:
        named = probabilities(embeddings[points], None if clip is None else clip[points])
        scores = join(named, quality[points])
        if scores.isnan().any():
            raise ValueError("a score is NaN: the detector's weights, its input or the text rows are broken")
        return scores

    # The best pairs lie in the points with the best best-class: at least `candidates` pairs, one of each chosen point,
    # score no less than any pair of the others. Ties fall as in one sort of all pairs, since both sorts are stable.
    chosen = torch.arange(len(embeddings), device=embeddings.device)
    points_at_a_time = max(1, CHUNK_ELEMENTS // num_classes)
    if len(embeddings) > candidates:
        best_scores = torch.cat([scores_of(chunk).amax(dim=1) for chunk in chosen.split(points_at_a_time)])
        chosen = best_scores.argsort(descending=True, stable=True)[:candidates].sort().values
    pairs = []
    for chunk in chosen.split(points_at_a_time):
        scores = scores_of(chunk)
        wanted = scores > score_threshold
        if scores.numel() > candidates:  # only what can be among the best pairs is worth sorting
            wanted &= scores >= scores.flatten().topk(candidates, sorted=False).values.amin()
        rows, classes = wanted.nonzero().unbind(dim=1)
        pairs.append((chunk[rows], classes, scores[rows, classes]))
    point, classes, scores = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    scores, order = scores.sort(descending=True, stable=True)
    scores, order = scores[:candidates], order[:candidates]
    boxes, classes = boxes[point[order]], classes[order]

    # Class-aware by shifting each class's boxes to a place of their own, as torchvision's batched_nms does, but in
    # float64: in float32 the shifts of a thousand classes would leave fractions of a pixel in doubt. On a CPU
    # batched_nms loops over the classes instead, which is many times slower.
    shifts = classes * (input_size.max() + 1)
    kept = nms(boxes.double() + shifts[:, None], scores.double(), nms_iou)[:max_detections]
    return Detections(
        boxes=rescale_boxes(boxes[kept], input_size, original_size), scores=scores[kept], classes=classes[kept]
    )
