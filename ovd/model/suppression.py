"""Non-maximum suppression of the boxes of one image, or of several images at once.

On a GPU torchvision's `nms` decides about box after box of one image. There the boxes of several images are decided
together, in a few rounds of dense operations, with the same result.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

INITIAL_FACTOR = 2
"""Number of boxes that NMS processes first, as a multiple of the number to keep."""
MAX_BOX_PAIRS = 2**25
"""Maximum number of pairs of boxes whose overlaps are in memory at a time: 256 MiB in float64."""


def best_after_nms(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    scores: Sequence[Float[Tensor, " _"]],
    iou: float,
    count: int,
    *,
    together: bool,
) -> list[Int[Tensor, " _"]]:
    """Return the rows of each image's `count` best boxes that NMS keeps, best first.

    Args:
        boxes: boxes of each image, best first. Worse boxes do not change whether a box is kept, so they are processed
            only if needed.
        scores: scores of these boxes.
        together: whether to decide about the boxes of all images together, which is faster on a GPU.
    """
    num_tried = INITIAL_FACTOR * count
    if not together:
        return [
            _best_of_image(of_image, of_scores, iou, count, num_tried)
            for of_image, of_scores in zip(boxes, scores, strict=True)
        ]
    kept = _nms_of_images([of_image[:num_tried] for of_image in boxes], iou)
    return [
        rows[:count]
        if len(rows) >= count or num_tried >= len(of_image)
        else _best_of_image(of_image, of_scores, iou, count, 2 * num_tried)
        for rows, of_image, of_scores in zip(kept, boxes, scores, strict=True)
    ]


def _best_of_image(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou: float, count: int, num_tried: int
) -> Int[Tensor, " K"]:
    """Do the work of `best_after_nms` for one image, beginning with its `num_tried` best boxes."""
    while True:
        kept = nms(boxes[:num_tried], scores[:num_tried], iou)
        if len(kept) >= count or num_tried >= len(boxes):
            return kept[:count]
        num_tried *= 2


def _nms_of_images(images: Sequence[Float[Tensor, "_ 4"]], iou: float) -> list[Int[Tensor, " _"]]:
    """Return the rows of the boxes that NMS keeps in each image, in their order; `images` are boxes, best first."""
    padded = pad_sequence(list(images), batch_first=True)  # boxes of zeros overlap nothing
    at_once = max(1, MAX_BOX_PAIRS // max(1, padded.shape[1] ** 2))
    kept = torch.cat([_is_kept(part, iou) for part in padded.split(at_once)])
    lengths = torch.tensor([len(boxes) for boxes in images], device=padded.device)
    kept &= torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return list(kept.nonzero()[:, 1].split(kept.sum(dim=1).tolist()))


def _is_kept(boxes: Float[Tensor, "B N 4"], iou: float) -> Bool[Tensor, "B N"]:
    """Return which boxes NMS keeps: those that no better box which is kept overlaps by more than `iou`.

    Starting from all boxes, this rule is applied until nothing changes. After n rounds at least the n best boxes of
    each image are right, and so is every box whose chains of overlaps with better ones are shorter than n.

    Args:
        boxes: boxes of each image, best first.
    """
    suppresses = (_pairwise_iou(boxes) > iou).tril(diagonal=-1)
    kept = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    while True:
        next_kept = ~(suppresses & kept[:, None]).any(dim=2)
        if torch.equal(next_kept, kept):
            return kept
        kept = next_kept


def _pairwise_iou(boxes: Float[Tensor, "B N 4"]) -> Float[Tensor, "B N N"]:
    """Compute the IoU of all pairs of an image's boxes; 0 or NaN for boxes without area."""
    left, top, right, bottom = boxes.unbind(dim=2)
    areas = (right - left) * (bottom - top)
    overlap = _pairwise_overlap(left, right).mul_(_pairwise_overlap(top, bottom))
    union = (areas[:, :, None] + areas[:, None]).sub_(overlap)
    return overlap.div_(union)


def _pairwise_overlap(start: Float[Tensor, "B N"], end: Float[Tensor, "B N"]) -> Float[Tensor, "B N N"]:
    """Compute the lengths of the overlaps of all pairs of an image's intervals."""
    last_start = torch.maximum(start[:, :, None], start[:, None])
    return torch.minimum(end[:, :, None], end[:, None]).sub_(last_start).clamp_(min=0)
