"""Merging of the detections of several detectors in one image."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ovd.choices import SamePlace
from ovd.structures import Detections

SAME_PLACE_IOU = 0.6
"""Minimum IoU of boxes of two detectors that are at one place."""


def merge(
    base: Detections,
    experts: Sequence[Detections],
    *,
    same_place: SamePlace,
    nms_iou: float,
    max_detections: int,
) -> tuple[Detections, int]:
    """Merge the detections of the base detector and of its experts, best first.

    Args:
        base, experts: detections, best first; their classes are rows of the same vocabulary.
        same_place: what to do with boxes of the base detector and of an expert at one place. `base_stays` drops the
            expert's box if its score is not higher, and never a box of the base detector; `surer` drops the box of the
            lower score, and of equal scores the expert's; `both` keeps both.
        nms_iou: IoU above which the box of the lower score is dropped, among boxes of a class that several experts have
            in common.
        max_detections: maximum number of boxes that are kept, the best ones.

    Returns:
        The merged detections, and the number that `max_detections` cut off.
    """
    from_experts = Detections.cat(experts)
    if len(experts) > 1:
        from_experts = from_experts.take(_kept_of_common_classes(experts, from_experts, nms_iou))
    if same_place != "both":
        overlaps_base = box_iou(base.boxes, from_experts.boxes) >= SAME_PLACE_IOU
        base_scores_higher = base.scores[:, None] >= from_experts.scores
        if same_place == "surer":
            keeps_base, keeps_expert = _suppress_overlaps(
                overlaps_base, base_scores_higher, base.scores, from_experts.scores
            )
            base, from_experts = base.take(keeps_base), from_experts.take(keeps_expert)
        else:
            from_experts = from_experts.take(~(overlaps_base & base_scores_higher).any(dim=0))
    merged = Detections.cat([base, from_experts])
    # Stable: of equal scores the base detector's comes first.
    order = merged.scores.argsort(descending=True, stable=True)
    return merged.take(order[:max_detections]), max(0, len(order) - max_detections)


def _kept_of_common_classes(parts: Sequence[Detections], together: Detections, nms_iou: float) -> Bool[Tensor, " K"]:
    """Return which detections are kept by NMS in the classes that several experts have in common; others all are."""
    classes, counts = torch.cat([part.classes.unique() for part in parts]).unique(return_counts=True)
    rows = torch.isin(together.classes, classes[counts > 1]).nonzero().squeeze(1)
    common = together.take(rows)
    kept = torch.ones(len(together.scores), dtype=torch.bool)
    kept[rows] = False
    # Detections of equal score keep their order, which is that of the experts.
    kept[rows[batched_nms(common.boxes.double(), common.scores.double(), common.classes, nms_iou)]] = True
    return kept


def _suppress_overlaps(
    overlaps_base: Bool[Tensor, "N K"],
    base_scores_higher: Bool[Tensor, "N K"],
    base_scores: Float[Tensor, " N"],
    expert_scores: Float[Tensor, " K"],
) -> tuple[Bool[Tensor, " N"], Bool[Tensor, " K"]]:
    """Return which boxes are kept: best first, each kept box drops those of the other side at its place."""
    keeps_base, keeps_expert = [True] * len(base_scores), [True] * len(expert_scores)
    pairs = overlaps_base.nonzero()
    surer = torch.maximum(base_scores[pairs[:, 0]], expert_scores[pairs[:, 1]])
    pairs = pairs[surer.argsort(descending=True, stable=True)]
    for (of_base, of_expert), is_base in zip(pairs.tolist(), base_scores_higher[*pairs.T].tolist(), strict=True):
        if keeps_base[of_base] and keeps_expert[of_expert]:
            if is_base:
                keeps_expert[of_expert] = False
            else:
                keeps_base[of_base] = False
    return torch.tensor(keeps_base, dtype=torch.bool), torch.tensor(keeps_expert, dtype=torch.bool)
