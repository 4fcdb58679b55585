"""Box operations that torchvision.ops lacks; areas, IoU and NMS come from there.

Sizes are (height, width) in pixels, the order of an image tensor's last two axes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def clip_boxes(boxes: Float[Tensor, "*N 4"], size: Int[Tensor, "*#N 2"]) -> Float[Tensor, "*N 4"]:
    """Move corners outside an image of `size` onto its border; a box wholly outside is left with no area.

    torchvision's clip_boxes_to_image takes Python numbers, which on a GPU would wait for the device.
    """
    return torch.minimum(boxes.clamp(min=0), _of_corners(size).to(boxes.dtype))


def rescale_boxes(
    boxes: Float[Tensor, "*N 4"], from_size: Int[Tensor, "2"], to_size: Int[Tensor, "2"]
) -> Float[Tensor, "*N 4"]:
    """Convert boxes from pixels of an image of `from_size` to pixels of the same image at `to_size`.

    x and y have separate factors: rounding a resized image's sides to whole pixels changes its aspect ratio.
    """
    from_xyxy, to_xyxy = (_of_corners(size).to(boxes.dtype) for size in (from_size, to_size))
    return boxes * to_xyxy / from_xyxy


def _of_corners(size: Int[Tensor, "*N 2"]) -> Int[Tensor, "*N 4"]:
    """Width, height, width, height; a list of positions would make a GPU wait."""
    width_height = size.flip(-1)
    return torch.cat([width_height, width_height], dim=-1)


def side_distances(points: Float[Tensor, "*#N 2"], boxes: Float[Tensor, "*#N 4"]) -> Float[Tensor, "*N 4"]:
    """Pixels from each point to its box's left, top, right and bottom side; all positive iff the point is inside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
