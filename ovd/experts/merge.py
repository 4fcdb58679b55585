"""One list of detections from several answerers, in one image."""

from collections.abc import Sequence

import torch
from torchvision.ops import batched_nms, box_iou

from ovd.choices import SamePlace
from ovd.structures import Detections

PLACE_IOU = 0.6
"""IoU at which the boxes of two answerers are at one place."""


def merge(
    base: Detections,
    experts: Sequence[Detections],
    *,
    same_place: SamePlace,
    nms_iou: float,
    max_detections: int,
) -> tuple[Detections, int]:
    """Merge the answers of the base detector and of its experts, best first.

    Args:
        base, experts: best first; their classes are rows of the same vocabulary.
        same_place: what to do with boxes of the base detector and of an expert at one place. `base_stays` drops the
            expert's if it is the less probable, and never one of the base's; `surer` drops the less probable; `both`
            keeps both.
        nms_iou: where several experts have a class in common, the less probable box is dropped above this IoU.
        max_detections: maximum number of boxes that are kept, the best ones.

    Returns:
        The merged detections, and the number that `max_detections` cut off.
    """
    of_experts = Detections.cat(experts)
    if len(experts) > 1 and _have_class_in_common(experts):
        # Equal boxes keep their order, which is that of the experts.
        boxes, scores = of_experts.boxes.double(), of_experts.scores.double()
        of_experts = of_experts.take(batched_nms(boxes, scores, of_experts.classes, nms_iou))
    if same_place != "both":
        at_one_place = box_iou(base.boxes, of_experts.boxes) >= PLACE_IOU
        base_is_surer = base.scores[:, None] >= of_experts.scores
        kept_of_experts = ~(at_one_place & base_is_surer).any(dim=0)
        if same_place == "surer":
            base = base.take(~(at_one_place & ~base_is_surer).any(dim=1))
        of_experts = of_experts.take(kept_of_experts)
    merged = Detections.cat([base, of_experts])
    # Stable: of equal scores the base's comes first.
    order = merged.scores.argsort(descending=True, stable=True)
    return merged.take(order[:max_detections]), max(0, len(order) - max_detections)


def _have_class_in_common(parts: Sequence[Detections]) -> bool:
    counts = torch.cat([part.classes.unique() for part in parts]).unique(return_counts=True)[1]
    return bool((counts > 1).any())
