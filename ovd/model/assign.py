"""Which true box each point answers for: the assignment of FCOS with centre sampling.

Source: FCOS (arXiv:1904.01355), section 3, with the centre sampling of its journal version (arXiv:2006.09214).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.boxes import side_distances
from ovd.structures import Assignment, Points, Targets


def assign_fcos(
    points: Points, targets: tuple[Targets, ...], *, sizes: Int[Tensor, "B 2"], center_radius: float = 1.5
) -> Assignment:
    """Match points to true boxes.

    A point is a candidate of a box if it lies inside the box, less than `center_radius` strides from the box's centre
    in both x and y, and if the largest of its four distances to the box's sides belongs to its level: (4s, 8s] for a
    level of stride s, from 0 for the finest level and without end for the coarsest. With strides 8 to 128 these are
    FCOS's limits 64, 128, 256, 512. A candidate of several boxes takes the smallest, and of equal ones the first.

    A box so small that no point lies inside has no candidate, as in FCOS.

    Args:
        points: shared by all images.
        targets: one per image.
        sizes: height and width of each image before padding. Points in the padding are never matched.
        center_radius: in strides.
    """
    images = [
        _assign_image(points, image_targets, size, center_radius)
        for image_targets, size in zip(targets, sizes, strict=True)
    ]
    matched, ignored, wrong_scale = zip(*images, strict=True)
    return Assignment(torch.stack(matched), torch.stack(ignored), torch.stack(wrong_scale))


def _assign_image(
    points: Points, targets: Targets, size: Int[Tensor, "2"], center_radius: float
) -> tuple[Int[Tensor, " P"], Bool[Tensor, " P"], Bool[Tensor, " P"]]:
    padding = (points.centers >= size.flip(0)).any(dim=1)
    matched = torch.full_like(padding, -1, dtype=torch.int64)
    central = _central(points, targets.boxes, center_radius) & ~padding[:, None]
    if len(targets.boxes) > 0:
        candidate = central & _of_level(points, targets.boxes)
        widths, heights = (targets.boxes[:, 2:] - targets.boxes[:, :2]).unbind(dim=1)
        area, smallest = torch.where(candidate, widths * heights, torch.inf).min(dim=1)
        matched = torch.where(area < torch.inf, smallest, matched)
    crowd = (side_distances(points.centers[:, None], targets.ignore_boxes) > 0).all(dim=2).any(dim=1)
    return matched, padding | (crowd & (matched < 0)), central.any(dim=1) & (matched < 0)


def _central(points: Points, boxes: Float[Tensor, "R 4"], center_radius: float) -> Bool[Tensor, "P R"]:
    """Inside the box and less than `center_radius` strides from its centre."""
    inside = (side_distances(points.centers[:, None], boxes) > 0).all(dim=2)
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = (points.centers[:, None] - box_centers).abs().amax(dim=2)
    return inside & (offset < center_radius * points.strides[:, None])


def _of_level(points: Points, boxes: Float[Tensor, "R 4"]) -> Bool[Tensor, "P R"]:
    """Whether the box's size, seen from the point, belongs to the point's level."""
    strides = points.strides
    lower = torch.where(strides == strides.min(), 0, 4 * strides)
    upper = torch.where(strides == strides.max(), torch.inf, 8 * strides)
    largest = side_distances(points.centers[:, None], boxes).amax(dim=2)
    return (largest > lower[:, None]) & (largest <= upper[:, None])
