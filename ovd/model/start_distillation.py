"""Distillation from the detector that a fine-tuning starts from, at the points without new annotations.

At unmatched points, embeddings, quality and boxes are pulled towards those of the starting detector (learning without
forgetting, arXiv:1606.09282, at the points of a detector). The losses and their form are choices of this toolkit. With
them a single set of weights keeps more of the old names and learns less of the new ones (docs/fine_tuning.md).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovd.boxes import giou_loss
from ovd.distributed import sum_over_ranks
from ovd.model.similarity import unit_embeddings
from ovd.structures import Assignment, Predictions

SURE_QUALITY = 0.3
"""Quality of the starting detector above which its boxes are distilled."""


def unannotated_points(assignment: Assignment) -> Bool[Tensor, "B P"]:
    """Return the mask of the points without annotations: unmatched, not ignored and in no center of a true box."""
    return (assignment.matched < 0) & ~assignment.ignored & ~assignment.unmatched_center


def start_distillation_losses(
    predictions: Predictions, start: Predictions, unannotated: Bool[Tensor, "B P"]
) -> dict[str, Float[Tensor, ""]]:
    """Compute the losses `keep_class`, `keep_quality` and `keep_box`, each 0 without any points.

    The first two are means over the unannotated points of all ranks. The last is the mean over those where the starting
    detector's quality is above `SURE_QUALITY`, weighted by this quality; if the weights sum to less than 1, it is the
    weighted sum.

    Args:
        start: the starting detector's predictions for the same images.
        unannotated: points to distill, from `unannotated_points`.
    """
    probability = start.quality.float().sigmoid()
    sure = unannotated & (probability > SURE_QUALITY)
    weights = probability[sure]
    distance = 1 - (
        unit_embeddings(predictions.embeddings[unannotated]) * unit_embeddings(start.embeddings[unannotated])
    ).sum(dim=1)
    quality = F.binary_cross_entropy_with_logits(
        predictions.quality[unannotated].float(), probability[unannotated], reduction="none"
    ) - F.binary_cross_entropy_with_logits(
        start.quality[unannotated].float(), probability[unannotated], reduction="none"
    )
    boxes = giou_loss(predictions.boxes[sure].float(), start.boxes[sure].float())
    totals = sum_over_ranks(torch.stack([unannotated.sum().float(), weights.sum()]))
    num_unannotated, weight = totals.clamp(min=1).unbind()
    return {
        "keep_class": distance.sum() / num_unannotated,
        "keep_quality": quality.sum() / num_unannotated,
        "keep_box": (boxes * weights).sum() / weight,
    }
