"""Image-level labels on the largest proposal: Detic's way to learn from images without boxes (arXiv:2201.02605)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ovd.boxes import clip_boxes
from ovd.model.similarity import cosine_logits
from ovd.structures import Batch, Points, Predictions

NUM_PROPOSALS = 20


def image_label_loss(
    predictions: Predictions,
    batch: Batch,
    classes: Int[Tensor, " K"],
    text: Float[Tensor, "K D"],
    of_pairs: Bool[Tensor, " K"],
    points: Points,
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross-entropy of the pairs' texts at the largest proposal of each pair's image; summed over the pairs.

    A one-stage detector has no class-agnostic proposals: the `NUM_PROPOSALS` points of highest score for any text of
    the pairs stand in for them. A text of the pair itself is true there, one of another pair is not.

    Args:
        classes: of the rows of `text`, as in `StepTexts`; the texts of a pair are its `not_exhaustive_classes`.
        of_pairs: which rows are of the step's pairs, those of other ranks and parts included.
    """
    start = len(batch.targets) - batch.num_pairs
    own = [torch.isin(classes, target.not_exhaustive_classes) for target in batch.targets[start:]]
    loss = predictions.embeddings.sum() * 0
    if not own:
        return loss
    text = text[of_pairs]
    for image, is_own in enumerate(own, start):
        embeddings, size = predictions.embeddings[image], batch.sizes[image]
        with torch.no_grad():
            best_logits = cosine_logits(embeddings, text, scale=scale, bias=bias).amax(dim=1)
            scores = best_logits.sigmoid() * predictions.quality[image].float().sigmoid()
            scores = scores.masked_fill((points.centers >= size.flip(0)).any(dim=1), -1.0)
            proposals = scores.topk(min(NUM_PROPOSALS, len(scores))).indices
            boxes = clip_boxes(predictions.boxes[image, proposals].float(), size)
            largest = proposals[(boxes[:, 2:] - boxes[:, :2]).prod(dim=1).argmax()]
        logits = cosine_logits(embeddings[largest], text, scale=scale, bias=bias)
        loss = loss + F.binary_cross_entropy_with_logits(logits, is_own[of_pairs].float(), reduction="sum")
    return loss
