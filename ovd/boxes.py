"""Box operations that torchvision.ops lacks or that synchronize with the GPU there; areas, IoU and NMS come from it.

Sizes are (height, width) in pixels, the order of an image tensor's last two axes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPSILON = 1e-7
"""Number added to areas before dividing by them."""


def clip_boxes(boxes: Float[Tensor, "*N 4"], size: Int[Tensor, "*#N 2"]) -> Float[Tensor, "*N 4"]:
    """Clip boxes to an image of `size`; a box wholly outside is left with area 0.

    torchvision's clip_boxes_to_image takes the size as Python numbers, which synchronizes if the size is on a GPU.
    """
    return torch.minimum(boxes.clamp(min=0), _as_corners(size).to(boxes.dtype))


def has_area(boxes: Float[Tensor, "*N 4"]) -> Bool[Tensor, "*N"]:
    """Return a mask of the boxes with positive width and height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def rescale_boxes(
    boxes: Float[Tensor, "*N 4"], from_size: Int[Tensor, "*#N 2"], to_size: Int[Tensor, "*#N 2"]
) -> Float[Tensor, "*N 4"]:
    """Convert boxes inside an image of `from_size` to pixels of the same image at `to_size`.

    x and y have separate factors: rounding a resized image's sides to whole pixels changes its aspect ratio. Products
    beyond float32's exact integers (2**24) can be rounded up, so the boxes are clipped at the right and bottom.
    """
    from_xyxy, to_xyxy = (_as_corners(size).to(boxes.dtype) for size in (from_size, to_size))
    return torch.minimum(boxes * to_xyxy / from_xyxy, to_xyxy)


def _as_corners(size: Int[Tensor, "*N 2"]) -> Int[Tensor, "*N 4"]:
    """Return (width, height, width, height). Indexing with a list of positions would synchronize with a GPU."""
    width_height = size.flip(-1)
    return torch.cat([width_height, width_height], dim=-1)


def side_distances(points: Float[Tensor, "*#N 2"], boxes: Float[Tensor, "*#N 4"]) -> Float[Tensor, "*N 4"]:
    """Compute the distances in pixels from each point to the left, top, right and bottom side of its box.

    All four are positive if and only if the point is inside the box.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def giou_loss(boxes: Float[Tensor, "N 4"], true_boxes: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """Compute 1 - GIoU (arXiv:1902.09630) of each box and its true box.

    The results are bit-identical to torchvision's generalized_box_iou_loss, which indexes with a mask of the
    overlapping boxes and so synchronizes with the GPU five times in each pass.
    """
    left, top, right, bottom = boxes.unbind(-1)
    true_left, true_top, true_right, true_bottom = true_boxes.unbind(-1)
    inner_left, inner_top = torch.max(left, true_left), torch.max(top, true_top)
    inner_right, inner_bottom = torch.min(right, true_right), torch.min(bottom, true_bottom)
    overlaps = (inner_bottom > inner_top) & (inner_right > inner_left)
    inner = torch.where(overlaps, (inner_right - inner_left) * (inner_bottom - inner_top), 0)
    own, true = (right - left) * (bottom - top), (true_right - true_left) * (true_bottom - true_top)
    union = own + true - inner
    iou = inner / (union + EPSILON)
    outer_left, outer_top = torch.min(left, true_left), torch.min(top, true_top)
    outer_right, outer_bottom = torch.max(right, true_right), torch.max(bottom, true_bottom)
    outer = (outer_right - outer_left) * (outer_bottom - outer_top)
    return 1 - (iou - (outer - union) / (outer + EPSILON))
