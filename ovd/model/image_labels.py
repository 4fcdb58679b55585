"""Image-level labels on the largest proposal: Detic's training on images without boxes (arXiv:2201.02605)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ovd.boxes import clip_boxes
from ovd.model.similarity import TextClassifier, best_scores
from ovd.structures import Batch, Points, Predictions

NUM_PROPOSALS = 20


def image_label_loss(
    predictions: Predictions, batch: Batch, classifier: TextClassifier, points: Points
) -> Float[Tensor, ""]:
    """Compute the cross-entropy of the pairs' texts at the largest proposal of each pair's image, summed over pairs.

    A one-stage detector has no class-agnostic proposals; the `NUM_PROPOSALS` points of highest score for any text of
    the pairs are used instead. At the largest proposal, the pair's own texts are positives, those of other pairs
    negatives.

    Args:
        classifier: classifier of the texts of the step's pairs, including those of other ranks and parts.
    """
    loss = predictions.embeddings.sum() * 0
    pairs = batch.is_pair.nonzero().flatten().tolist()
    if not pairs:
        return loss
    unscored = points.are_unscored(batch.sizes)
    for image in pairs:
        is_own = torch.isin(classifier.class_ids, batch.targets[image].image_texts)
        embeddings = predictions.embeddings[image]
        with torch.no_grad():
            scores = best_scores(embeddings, predictions.quality[image], classifier)
            scores = scores.masked_fill(unscored[image], -1.0)
            proposals = scores.topk(min(NUM_PROPOSALS, len(scores))).indices
            boxes = clip_boxes(predictions.boxes[image, proposals].float(), batch.sizes[image])
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
            # In a small image fewer points are inside; the others among the proposals are not chosen.
            largest = proposals[areas.masked_fill(unscored[image, proposals], -1.0).argmax()]
        logits = classifier.logits(embeddings[largest])
        loss = loss + F.binary_cross_entropy_with_logits(logits, is_own.float(), reduction="sum")
    return loss
