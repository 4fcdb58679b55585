"""The detection losses of FCOS (arXiv:1904.01355), with a class loss made for large vocabularies (focal.py)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ovd.boxes import side_distances
from ovd.model.focal import chunked_focal_loss
from ovd.model.similarity import TextClassifier, unit_embeddings
from ovd.structures import Assignment, Points, Predictions, Targets


@dataclass(frozen=True)
class ClassMasks:
    """Which classes of a classifier count for an image; the class of the box that a point is matched to always does."""

    unmatched: Bool[Tensor, "B C"]
    """At points that are matched to no box (`federated.class_mask`)."""
    in_boxes: Bool[Tensor, "B C"]
    """At points that are matched to a box of another class."""


@dataclass(frozen=True)
class Matches:
    """The M matched points of a batch, and what is learned at its points besides the class."""

    image: Int[Tensor, " M"]
    point: Int[Tensor, " M"]
    box: Int[Tensor, " M"]
    """Row of the box that the point is matched to, among all the batch's boxes together."""
    teaches_box: Bool[Tensor, " M"]
    """False in images whose boxes are left out of the box and the quality loss."""
    true_boxes: Float[Tensor, "N 4"]
    """Of the N matches that teach the box."""
    weights: Float[Tensor, " N"]
    """Of these: their alignment where the assignment has it, else their true centerness."""
    wrong_scale: Bool[Tensor, "B P"]
    """Points whose quality is pushed to 0."""

    def normalizers(self) -> Float[Tensor, "3"]:
        """What the losses `class`, `box` and `quality` are divided by; added up where a batch is spread over ranks.

        The number of matched points, the sum of their boxes' weights, and the number of points that teach the quality.
        """
        num_quality = self.teaches_box.sum() + self.wrong_scale.sum()
        return torch.stack(
            [torch.tensor(len(self.box), device=self.box.device), self.weights.sum(), num_quality]
        ).float()


def match_points(
    assignment: Assignment, targets: tuple[Targets, ...], *, no_box_loss: Bool[Tensor, " B"], points: Points
) -> Matches:
    """The matched points of a batch, one by one.

    Args:
        no_box_loss: images whose boxes teach what is in them but not where their sides are.
    """
    image, point = (assignment.matched >= 0).nonzero(as_tuple=True)
    first_box = torch.tensor([0, *(len(t.boxes) for t in targets[:-1])], device=image.device).cumsum(0)
    box = first_box[image] + assignment.matched[image, point]
    teaches_box = ~no_box_loss[image]
    true_boxes = torch.cat([t.boxes for t in targets])[box[teaches_box]]
    if assignment.alignment is None:
        weights = centerness(side_distances(points.centers[point[teaches_box]], true_boxes))
    else:
        weights = assignment.alignment[image[teaches_box], point[teaches_box]]
    wrong_scale = assignment.wrong_scale & ~assignment.ignored & ~no_box_loss[:, None]
    return Matches(image, point, box, teaches_box, true_boxes, weights, wrong_scale)


def detection_losses(
    predictions: Predictions,
    assignment: Assignment,
    targets: tuple[Targets, ...],
    matches: Matches,
    *,
    classifier: TextClassifier,
    masks: ClassMasks,
    normalizers: Float[Tensor, "3"],
    use_compiled: bool = False,
) -> dict[str, Tensor]:
    """The losses `class`, `box` and `quality` of a batch, for the log and to be summed.

    They are finite and reach every prediction in the graph even when no image has a box.

    Args:
        predictions: embeddings of any length; normalized here in float32.
        matches: `match_points` of the assignment and the targets.
        classifier: of the classes this step scores; it holds every class of `targets`.
        normalizers: `Matches.normalizers`, of these images or of more that they are a part of.
        use_compiled: compile the focal loss, see `chunked_focal_loss`.
    """
    image, point = matches.image[matches.teaches_box], matches.point[matches.teaches_box]
    loss_box, loss_quality = box_and_quality_losses(
        predictions.boxes[image, point],
        predictions.quality[image, point],
        true_boxes=matches.true_boxes,
        weights=matches.weights,
        wrong_scale_quality=predictions.quality[matches.wrong_scale],
    )

    labels = torch.full_like(assignment.matched, -1)
    true_classes = torch.cat([t.classes for t in targets])
    labels[matches.image, matches.point] = classifier.positions(true_classes)[matches.box]
    counts = ~assignment.ignored
    # Two groups of points per image: those matched to no box, then those matched to one.
    number = torch.arange(len(targets), device=labels.device)[:, None]
    group = number + len(targets) * (assignment.matched >= 0)
    loss_class = chunked_focal_loss(
        unit_embeddings(predictions.embeddings[counts]),
        classifier,
        labels[counts],
        torch.cat([masks.unmatched, masks.in_boxes]),
        group[counts],
        use_compiled=use_compiled and predictions.embeddings.device.type != "cpu",  # there it is slower
    )
    num_matched, sum_weights, num_quality = normalizers
    return {
        "class": loss_class / num_matched.clamp(min=1),
        "box": loss_box / sum_weights.clamp(min=1e-6),  # the limit matters for no box alone
        "quality": loss_quality / num_quality.clamp(min=1),
    }


def box_and_quality_losses(
    boxes: Float[Tensor, "M 4"],
    quality: Float[Tensor, " M"],
    *,
    true_boxes: Float[Tensor, "M 4"],
    weights: Float[Tensor, " M"],
    wrong_scale_quality: Float[Tensor, " W"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sums of the weighted GIoU loss and of the cross-entropy between the predicted quality and the weights.

    Unlike in FCOS, the quality of a point on a true box that belongs to another level is pushed to 0. A shortcut makes
    such a point sure of the class (at P7 of everything in the image), so that something must say "not at this scale".
    Empty background teaches the quality nothing, since it may hold objects that nobody annotated.

    Args:
        boxes, quality: predictions of the M positive points; quality is a logit.
        true_boxes: the box each of them is matched to.
        weights: of the points, 0 to 1: their true centerness, or their alignment.
        wrong_scale_quality: logits of the W points of the wrong level.
    """
    giou = generalized_box_iou_loss(boxes.float(), true_boxes)
    logits = torch.cat([quality, wrong_scale_quality]).float()
    wanted = torch.cat([weights, torch.zeros_like(wrong_scale_quality, dtype=weights.dtype)])
    loss_quality = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return (giou * weights).sum(), loss_quality


def centerness(distances: Float[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    """Equation 3 of arXiv:1904.01355: 1 at the box's centre, 0 at its sides."""
    left, top, right, bottom = distances.unbind(dim=1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return torch.sqrt(across * down)
