"""The detection losses of FCOS (arXiv:1904.01355), with a class loss for large vocabularies (focal.py)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.boxes import giou_loss, side_distances
from ovd.model.focal import point_focal_loss
from ovd.model.similarity import TextClassifier
from ovd.structures import IGNORED, Assignment, Points, Predictions, Targets


@dataclass(frozen=True)
class ClassMasks:
    """Masks of the classes that count in each image's class loss; the class of a point's matched box always counts."""

    unmatched: Bool[Tensor, "B C"]
    """Whether a class counts at points that are not matched to a box (`federated.class_mask`)."""
    in_boxes: Bool[Tensor, "B C"]
    """Whether a class counts at points that are matched to a box of another class."""


@dataclass(frozen=True)
class MatchedPoints:
    """The M matched points of a batch, and the targets of the box and the quality loss.

    Points are given as rows of the B * P points of all images, in ascending order.
    """

    rows: Int[Tensor, " M"]
    classes: Int[Tensor, " M"]
    """Class of the box that each point is matched to."""
    box_loss_rows: Int[Tensor, " N"]
    """The N matched points with a box and a quality loss: all except those of `no_box_loss` images."""
    true_boxes: Float[Tensor, "N 4"]
    """Box that each of the N points is matched to."""
    weights: Float[Tensor, " N"]
    """Weight of each of the N points: its alignment if the assignment has it, else its true centerness."""
    center_rows: Int[Tensor, " W"]
    """The W unmatched points in the center of a box, whose quality target is 0."""

    def normalizers(self) -> Float[Tensor, "3"]:
        """Compute the divisors of the losses `class`, `box` and `quality`, to be summed over the ranks of a batch.

        These are the number of matched points, the sum of the box loss's weights, and the number of points with a
        quality loss.
        """
        num_matched, num_quality = self.weights.new_tensor(
            [len(self.rows), len(self.box_loss_rows) + len(self.center_rows)]
        )
        return torch.stack([num_matched, self.weights.sum(), num_quality])


def match_points(
    assignment: Assignment, targets: tuple[Targets, ...], *, no_box_loss: Bool[Tensor, " B"] | None, points: Points
) -> MatchedPoints:
    """Collect the matched points of a batch and their targets.

    Args:
        no_box_loss: images whose boxes are targets of the class loss only; None if there are none.
    """
    matched, num_points = assignment.matched.flatten(), len(points.centers)
    (rows,) = (matched >= 0).nonzero(as_tuple=True)
    image = rows // num_points
    first_box = torch.tensor([0, *(len(t.boxes) for t in targets[:-1])], device=rows.device).cumsum(0)
    box = first_box[image] + matched[rows]
    unmatched_center = assignment.unmatched_center & ~assignment.ignored
    box_loss_rows, boxed_box = rows, box
    if no_box_loss is not None:
        (boxed,) = (~no_box_loss[image]).nonzero(as_tuple=True)
        box_loss_rows, boxed_box = rows[boxed], box[boxed]
        unmatched_center &= ~no_box_loss[:, None]
    classes = torch.cat([t.classes for t in targets])[box]
    true_boxes = torch.cat([t.boxes for t in targets])[boxed_box]
    if assignment.alignment is None:
        weights = centerness(side_distances(points.centers[box_loss_rows % num_points], true_boxes))
    else:
        weights = assignment.alignment.flatten()[box_loss_rows]
    (center_rows,) = unmatched_center.flatten().nonzero(as_tuple=True)
    return MatchedPoints(rows, classes, box_loss_rows, true_boxes, weights, center_rows)


def detection_losses(
    predictions: Predictions,
    assignment: Assignment,
    matched_points: MatchedPoints,
    *,
    classifier: TextClassifier,
    masks: ClassMasks,
    normalizers: Float[Tensor, "3"],
    low_precision: bool = False,
) -> dict[str, Tensor]:
    """Compute the losses `class`, `box` and `quality` of a batch, which are logged and summed.

    They are finite and connected to every prediction in the graph even when no image has a box.

    Args:
        predictions: predictions for the batch; embeddings of any length are normalized here.
        matched_points: `match_points` of the assignment.
        classifier: classifier of the classes scored in this step. Points matched to a box of any other class have no
            class loss.
        normalizers: `MatchedPoints.normalizers` of these images, or summed over a larger batch that contains them.
        low_precision: whether to compute the matrix products of the class loss in bf16 if they are large.
    """
    quality = predictions.quality.flatten()
    loss_box, loss_quality = box_and_quality_losses(
        predictions.boxes.flatten(0, 1)[matched_points.box_loss_rows],
        quality[matched_points.box_loss_rows],
        true_boxes=matched_points.true_boxes,
        weights=matched_points.weights,
        unmatched_center_quality=quality[matched_points.center_rows],
    )

    labels = torch.where(assignment.ignored, IGNORED, -1).flatten()
    labels[matched_points.rows] = classifier.labels(matched_points.classes)
    # Each image has two groups of points: group i holds its unmatched points, group i + B its matched ones.
    num_images = len(assignment.matched)
    number = torch.arange(num_images, device=labels.device)[:, None]
    group = number + num_images * (assignment.matched >= 0)
    loss_class = point_focal_loss(
        predictions.embeddings.flatten(0, 1),
        classifier,
        labels,
        torch.cat([masks.unmatched, masks.in_boxes]),
        group.flatten(),
        low_precision=low_precision,
    )
    num_matched, sum_weights, num_quality = normalizers
    return {
        "class": loss_class / num_matched.clamp(min=1),
        "box": loss_box / sum_weights.clamp(min=1e-6),  # the limit only matters without any box
        "quality": loss_quality / num_quality.clamp(min=1),
    }


def box_and_quality_losses(
    boxes: Float[Tensor, "M 4"],
    quality: Float[Tensor, " M"],
    *,
    true_boxes: Float[Tensor, "M 4"],
    weights: Float[Tensor, " M"],
    unmatched_center_quality: Float[Tensor, " W"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the sums of the weighted GIoU loss and of the cross-entropy between predicted quality and weights.

    Unlike in FCOS, an unmatched point in the center of a true box, mostly of a box of another level, has the quality
    target 0. A shortcut gives such a point a high class probability (at P7, for every class in the image), so that only
    its quality can lower its score. Background points have no quality loss, since they may lie on objects that are not
    annotated.

    Args:
        boxes, quality: predictions of the M positive points; quality is a logit.
        true_boxes: the box that each of these points is matched to.
        weights: weights of these points, 0 to 1: their true centerness, or their alignment.
        unmatched_center_quality: quality logits of the W unmatched points in the center of a true box.
    """
    giou = giou_loss(boxes.float(), true_boxes)
    logits = torch.cat([quality, unmatched_center_quality]).float()
    wanted = torch.cat([weights, torch.zeros_like(unmatched_center_quality, dtype=weights.dtype)])
    loss_quality = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return (giou * weights).sum(), loss_quality


def centerness(distances: Float[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    """Compute the centerness (equation 3 of arXiv:1904.01355): 1 at the box's center, 0 at its sides.

    Args:
        distances: distances to the left, top, right and bottom side.
    """
    left, top, right, bottom = distances.unbind(dim=1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return torch.sqrt(across * down)
