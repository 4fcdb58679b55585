"""Non-maximum suppression that is exported as ONNX's `NonMaxSuppression`."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import nms


def nms_mask(
    boxes: Float[Tensor, "B K 4"], scores: Float[Tensor, "B C K"], *, iou: float, score_threshold: float
) -> Bool[Tensor, "B K"]:
    """Return whether each box survives NMS in a class for which its score is above the threshold.

    Args:
        boxes: best first, with a score above the threshold in one class at most.
        iou: IoU above which the lower-scoring of two boxes of one class is dropped.
    """
    batch, number = boxes.shape[:2]
    rows = _Suppression.apply(boxes, scores, iou, score_threshold)
    kept = torch.zeros_like(scores[:, 0]).flatten()
    kept = kept.scatter(0, rows[:, 0] * number + rows[:, 2], torch.ones_like(rows[:, 0], dtype=kept.dtype))
    return kept.view(batch, number) > 0


class _Suppression(torch.autograd.Function):
    """NMS per image and class; returns rows of (image, class, box) positions of the boxes that are kept."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou: float, score_threshold: float) -> Tensor:
        rows = []
        for image, of_image in enumerate(scores):
            for number, of_class in enumerate(of_image):
                wanted = (of_class > score_threshold).nonzero().squeeze(1)
                kept = wanted[nms(boxes[image, wanted], of_class[wanted], iou)]
                rows.append(torch.stack([torch.full_like(kept, image), torch.full_like(kept, number), kept], dim=1))
        return torch.cat(rows)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any, iou: float, score_threshold: float) -> Any:
        most = graph.op("Constant", value_t=torch.tensor([torch.iinfo(torch.int64).max]))
        limits = [graph.op("Constant", value_t=torch.tensor([limit])) for limit in (iou, score_threshold)]
        rows = graph.op("NonMaxSuppression", boxes, scores, most, *limits)
        rows.setType(boxes.type().with_dtype(torch.int64).with_sizes([None, 3]))
        return rows
