"""Matching of points to true boxes: FCOS's rules with center sampling, ATSS, or task-aligned assignment.

Sources: FCOS (arXiv:1904.01355), section 3, with the center sampling of its journal version (arXiv:2006.09214); ATSS
(arXiv:1912.02424), section 4; task-aligned assignment (TOOD, arXiv:2108.07755), section 3.2.
"""

from dataclasses import replace
from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

from ovd.boxes import side_distances
from ovd.choices import AssignmentRule
from ovd.model.similarity import TextClassifier
from ovd.structures import IGNORED, Assignment, Points, Predictions, Targets

MAX_PAIRS_PER_CHUNK = 2**22
"""Maximum number of pairs of a point and a box or crowd region in memory at a time, unless one image has more."""
CENTER_RADIUS = 1.5
"""Maximum distance in x and y of a point from a box's center in center sampling, in strides."""
ATSS_CANDIDATES, ATSS_ANCHOR = 9, 8
"""Number of candidates of a box on each level; side of a point's anchor, in strides."""
TOOD_CANDIDATES, TOOD_BETA = 13, 6.0
"""Maximum number of points matched to a box; exponent of the IoU in the alignment."""


def assign_fcos(points: Points, targets: tuple[Targets, ...], *, sizes: Int[Tensor, "B 2"]) -> Assignment:
    """Match points to true boxes by FCOS's rules.

    A point is a candidate of a box if it lies inside the box, less than `CENTER_RADIUS` strides from the box's center
    in both x and y, and if the largest of its four distances to the box's sides belongs to its level: (4s, 8s] for a
    level of stride s, from 0 for the finest level and without limit for the coarsest. With strides 8 to 128 these are
    FCOS's limits 64, 128, 256, 512. A candidate of several boxes is matched to the smallest, or the first of equally
    small ones.

    A box so small that no point lies inside it has no candidate, as in FCOS.

    Args:
        points: points of the predictions, shared by all images.
        targets: targets of each image.
        sizes: height and width of each image before padding. Points in the padding are never matched.
    """
    most_boxes = max(max(len(image.boxes), len(image.crowd_boxes)) for image in targets)
    images_at_a_time = max(1, MAX_PAIRS_PER_CHUNK // max(1, len(points.centers) * most_boxes))
    padding = points.in_padding(sizes)
    parts = []
    for first in range(0, len(targets), images_at_a_time):
        rows = slice(first, first + images_at_a_time)
        parts.append(_assign_images(points, targets[rows], padding[rows]))
    return Assignment.cat(parts)


def assign_atss(points: Points, targets: tuple[Targets, ...], *, sizes: Int[Tensor, "B 2"]) -> Assignment:
    """Match points to true boxes by ATSS: by statistics of each box's own candidates, without size ranges of levels.

    The candidates of a box are the `ATSS_CANDIDATES` points of each level nearest to its center, the first of equally
    near ones. A candidate's anchor is a square of `ATSS_ANCHOR` strides around it. Candidates inside the box are
    matched to it if their anchor's IoU with it is at least the mean plus the standard deviation of its candidates'
    IoUs. A point that qualifies for several boxes is matched to the one of highest IoU.

    Args:
        points, targets, sizes: as for `assign_fcos`.
    """
    half = ATSS_ANCHOR * points.strides[:, None] / 2
    anchors = torch.cat([points.centers - half, points.centers + half], dim=1)
    images = zip(targets, points.in_padding(sizes), strict=True)
    return Assignment.cat([_assign_image_atss(points, anchors, *image) for image in images])


def assign(
    rule: AssignmentRule,
    points: Points,
    targets: tuple[Targets, ...],
    *,
    sizes: Int[Tensor, "B 2"],
    predictions: Predictions | None = None,
    classifier: TextClassifier | None = None,
) -> Assignment | None:
    """Match points to true boxes by a rule; return None if it depends on predictions and there are none yet.

    Args:
        points, targets, sizes: as for `assign_fcos`.
        predictions, classifier: as for `assign_task_aligned`; None before the forward pass.
    """
    match rule:
        case "fcos":
            return assign_fcos(points, targets, sizes=sizes)
        case "atss":
            return assign_atss(points, targets, sizes=sizes)
        case "task_aligned":
            if predictions is None or classifier is None:
                return None
            return assign_task_aligned(points, targets, predictions, sizes=sizes, classifier=classifier)
        case _:
            assert_never(rule)


def _assign_image_atss(
    points: Points, anchors: Float[Tensor, "P 4"], targets: Targets, padding: Bool[Tensor, " P"]
) -> Assignment:
    matched = torch.full_like(padding, -1, dtype=torch.int64)
    boxes = targets.boxes
    if len(boxes) > 0:
        # Squared distances from differences: equal distances must be equal numbers, whatever the number of points.
        offset = points.centers[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2
        distance = offset.square().sum(dim=2).masked_fill(padding[:, None], torch.inf)
        candidate = torch.zeros_like(distance, dtype=torch.bool)
        for stride in points.strides.unique():
            (level,) = (points.strides == stride).nonzero(as_tuple=True)
            # A stable sort takes the first of equally near points, so that padding changes nothing.
            nearest = distance[level].sort(dim=0, stable=True).indices[:ATSS_CANDIDATES]
            candidate.scatter_(0, level[nearest], True)
        candidate &= ~padding[:, None]
        overlap = box_iou(anchors, boxes)
        count = candidate.sum(dim=0).clamp(min=1)
        mean = (overlap * candidate).sum(dim=0) / count
        variance = ((overlap - mean).square() * candidate).sum(dim=0) / (count - 1).clamp(min=1)
        wanted = candidate & _inside(points, boxes) & (overlap >= mean + variance.sqrt())
        best, row = torch.where(wanted, overlap, -1.0).max(dim=1)
        matched = torch.where(best >= 0, row, matched)
    return _assignment_of_image(points, targets, matched, padding)


@torch.no_grad()
def assign_task_aligned(
    points: Points,
    targets: tuple[Targets, ...],
    predictions: Predictions,
    *,
    sizes: Int[Tensor, "B 2"],
    classifier: TextClassifier,
) -> Assignment:
    """Match to each true box the points inside it whose predictions are best at both tasks (TOOD).

    A point's alignment with a box is (probability of the box's class) x (IoU of the predicted box) ** `TOOD_BETA`. The
    `TOOD_CANDIDATES` best points of a box are matched to it; a point that qualifies for several boxes is matched to the
    one of highest IoU. Alignments are then scaled, box by box, so that the best equals the box's best IoU.

    Args:
        points, targets, sizes: as for `assign_fcos`.
        classifier: classifier of the classes scored in the step. The probability of any other class counts as 1.
    """
    images = zip(targets, points.in_padding(sizes), predictions.embeddings, predictions.boxes, strict=True)
    return Assignment.cat([_assign_image_task_aligned(points, classifier, *image) for image in images])


def _assign_image_task_aligned(
    points: Points,
    classifier: TextClassifier,
    targets: Targets,
    padding: Bool[Tensor, " P"],
    embeddings: Float[Tensor, "P D"],
    predicted: Float[Tensor, "P 4"],
) -> Assignment:
    matched = torch.full_like(padding, -1, dtype=torch.int64)
    alignment = torch.zeros(len(padding), device=padding.device)
    if len(targets.boxes) > 0:
        rows = classifier.labels(targets.classes)
        has_name = rows != IGNORED
        probability = torch.ones(len(padding), len(rows), device=padding.device)
        probability[:, has_name] = classifier.select(rows[has_name]).logits(embeddings).sigmoid()
        overlap = box_iou(predicted.float(), targets.boxes)
        inside = _inside(points, targets.boxes) & ~padding[:, None]
        score = (probability * overlap**TOOD_BETA) * inside
        best = score.topk(min(TOOD_CANDIDATES, len(score)), dim=0)
        wanted = torch.zeros_like(inside).scatter_(0, best.indices, best.values > 0)
        overlap_wanted, row = torch.where(wanted, overlap, -1.0).max(dim=1)
        matched = torch.where(overlap_wanted >= 0, row, matched)
        is_own = matched[:, None] == torch.arange(len(targets.boxes), device=padding.device)
        highest = (score * is_own).amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = score / highest * (overlap * is_own).amax(dim=0)
        alignment = (scaled * is_own).sum(dim=1)
    return replace(_assignment_of_image(points, targets, matched, padding), alignment=alignment[None])


def nearest_matched_points(
    points: Points, boxes: Float[Tensor, "R 4"], matched: Int[Tensor, " P"]
) -> Int[Tensor, " R"]:
    """Return, for each box, the matched point nearest to its center, the first of equally near ones; -1 for none.

    Args:
        matched: row of the box that each point is matched to, or -1: one image of `Assignment.matched`.
    """
    offsets = (points.centers[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=2)
    is_matched = matched[:, None] == torch.arange(len(boxes), device=matched.device)
    offset, nearest = torch.where(is_matched, offsets, torch.inf).min(dim=0)
    return torch.where(offset < torch.inf, nearest, -1)


def _assign_images(points: Points, targets: tuple[Targets, ...], padding: Bool[Tensor, "B P"]) -> Assignment:
    # Images are padded to the same number of boxes with empty boxes, which contain no point.
    boxes = pad_sequence([image.boxes for image in targets], batch_first=True)
    matched = torch.full_like(padding, -1, dtype=torch.int64)
    central = _in_center_region(points, boxes) & ~padding[..., None]
    if boxes.shape[1] > 0:
        candidate = central & _in_level_range(points, boxes)
        widths, heights = (boxes[..., 2:] - boxes[..., :2]).unbind(dim=2)
        area, smallest = torch.where(candidate, (widths * heights)[:, None], torch.inf).min(dim=2)
        matched = torch.where(area < torch.inf, smallest, matched)
    crowd_boxes = pad_sequence([image.crowd_boxes for image in targets], batch_first=True)
    return _with_ignored(points, crowd_boxes, matched, padding, central)


def _assignment_of_image(
    points: Points, targets: Targets, matched: Int[Tensor, " P"], padding: Bool[Tensor, " P"]
) -> Assignment:
    central = _in_center_region(points, targets.boxes)
    return _with_ignored(points, targets.crowd_boxes[None], matched[None], padding[None], central[None])


def _with_ignored(
    points: Points,
    crowd_boxes: Float[Tensor, "B I 4"],
    matched: Int[Tensor, "B P"],
    padding: Bool[Tensor, "B P"],
    central: Bool[Tensor, "B P R"],
) -> Assignment:
    """Build the assignment from matched points, and mark those to ignore; `central` is from `_in_center_region`."""
    unmatched = matched < 0
    crowd = _inside(points, crowd_boxes).any(dim=-1)
    return Assignment(matched, padding | (crowd & unmatched), central.any(dim=-1) & ~padding & unmatched)


def _inside(points: Points, boxes: Float[Tensor, "*B R 4"]) -> Bool[Tensor, "*B P R"]:
    return (side_distances(points.centers[:, None], boxes[..., None, :, :]) > 0).all(dim=-1)


def _in_center_region(points: Points, boxes: Float[Tensor, "*B R 4"]) -> Bool[Tensor, "*B P R"]:
    """Return whether each point is inside a box and less than `CENTER_RADIUS` strides from its center."""
    box_centers = (boxes[..., None, :, :2] + boxes[..., None, :, 2:]) / 2
    offset = (points.centers[:, None] - box_centers).abs().amax(dim=-1)
    return _inside(points, boxes) & (offset < CENTER_RADIUS * points.strides[:, None])


def _in_level_range(points: Points, boxes: Float[Tensor, "*B R 4"]) -> Bool[Tensor, "*B P R"]:
    """Return whether the largest distance from each point to a box's sides belongs to the point's level."""
    strides = points.strides
    lower = torch.where(strides == strides.min(), 0, 4 * strides)
    upper = torch.where(strides == strides.max(), torch.inf, 8 * strides)
    largest = side_distances(points.centers[:, None], boxes[..., None, :, :]).amax(dim=-1)
    return (largest > lower[:, None]) & (largest <= upper[:, None])
