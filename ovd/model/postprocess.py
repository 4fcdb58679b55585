"""From predictions to detections, in pixels of the original images."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

from ovd.boxes import clip_boxes, rescale_boxes
from ovd.model.similarity import CHUNK_ELEMENTS, cosine_logits
from ovd.structures import Detections, Predictions


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
) -> tuple[Detections, ...]:
    """Score, select, suppress duplicates and rescale.

    The score of a point for a class is sqrt(class probability * sigmoid(quality)). Per image: boxes are clipped to the
    image and those left without area dropped; the `candidates` best (point, class) pairs above `score_threshold` go
    through class-aware NMS, and the `max_detections` best survivors are returned, best first. Pairs of equal score
    are in the order of point, then class.

    Args:
        text: unit rows of the vocabulary that is asked for, at least one.
        input_sizes: height and width of the images as the detector saw them, before padding.
        original_sizes: height and width of the images the boxes are wanted for.

    Raises:
        ValueError: the predictions or text rows hold NaN.
    """
    assert len(text) > 0, "postprocess needs at least one class"
    return tuple(
        _postprocess_image(
            *image,
            text=text,
            scale=scale,
            bias=bias,
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
            candidates=candidates,
        )
        for image in zip(
            predictions.embeddings, predictions.boxes, predictions.quality, input_sizes, original_sizes, strict=True
        )
    )


def _postprocess_image(
    embeddings: Float[Tensor, "P D"],
    boxes: Float[Tensor, "P 4"],
    quality: Float[Tensor, " P"],
    input_size: Int[Tensor, "2"],
    original_size: Int[Tensor, "2"],
    *,
    text: Float[Tensor, "C D"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
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

    best_logits = torch.cat(
        [
            cosine_logits(chunk, text, scale=scale, bias=bias).amax(dim=1)
            for chunk in embeddings.split(max(1, CHUNK_ELEMENTS // len(text)))
        ]
    )
    best_scores = _scores(best_logits, quality)
    if best_scores.isnan().any():
        raise ValueError("a score is NaN: the detector's weights, its input or the text rows are broken")

    # The best pairs lie in the points with the best best-class: at least `candidates` pairs, one of each chosen point,
    # score no less than any pair of the others. Ties fall as in one sort of all pairs, since both sorts are stable.
    chosen = best_scores.argsort(descending=True, stable=True)[:candidates].sort().values
    logits = cosine_logits(embeddings[chosen], text, scale=scale, bias=bias)
    scores = _scores(logits, quality[chosen, None])
    wanted = scores > score_threshold
    if len(chosen) == candidates:
        # Likewise nothing below the weakest of the chosen points' best can be among the best pairs.
        wanted &= scores >= scores.amax(dim=1).amin()
    rows, classes = wanted.nonzero().unbind(dim=1)
    scores = scores[rows, classes]
    scores, order = scores.sort(descending=True, stable=True)
    scores, order = scores[:candidates], order[:candidates]
    boxes, classes = boxes[chosen[rows[order]]], classes[order]

    # Class-aware by shifting each class's boxes to a place of their own, as torchvision's batched_nms does, but in
    # float64: in float32 the shifts of a thousand classes would leave fractions of a pixel in doubt. On a CPU
    # batched_nms loops over the classes instead, which is many times slower.
    shifts = classes * (input_size.max() + 1)
    kept = nms(boxes.double() + shifts[:, None], scores.double(), nms_iou)[:max_detections]
    return Detections(
        boxes=rescale_boxes(boxes[kept], input_size, original_size), scores=scores[kept], classes=classes[kept]
    )


def _scores(logits: Float[Tensor, "*#N"], quality: Float[Tensor, "*#N"]) -> Float[Tensor, "*N"]:
    return torch.sqrt(torch.sigmoid(logits) * torch.sigmoid(quality.float()))
