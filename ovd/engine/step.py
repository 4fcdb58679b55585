"""The gradients of one batch: predict, assign, compute the losses, backward pass."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovd.choices import AssignmentRule
from ovd.config.training import PairsConfig, TrainSection
from ovd.data.loading.buckets import padded_shape
from ovd.data.loading.padding import pad_images
from ovd.distributed import max_over_ranks, min_over_ranks, sum_over_ranks, world_size
from ovd.engine.side_stream import SideStream
from ovd.engine.step_texts import StepTexts
from ovd.model.assign import assign
from ovd.model.crop_encoder import CropEncoder
from ovd.model.detector import Detector
from ovd.model.image_labels import image_label_loss
from ovd.model.losses import ClassMasks, MatchedPoints, detection_losses, match_points
from ovd.model.region_distillation import region_loss, select_regions
from ovd.model.similarity import TextClassifier, initial_bias
from ovd.model.start_distillation import start_distillation_losses, unannotated_points
from ovd.precision import Compute
from ovd.structures import Assignment, Batch, Points, Predictions, Targets


@dataclass(frozen=True)
class Matching:
    """The assignment of the points of some images, and the divisors of the losses."""

    assignment: Assignment
    matched_points: MatchedPoints
    normalizers: Float[Tensor, "3"]
    """Divisors of the losses, in the order of `MatchedPoints.normalizers`."""


@dataclass(frozen=True)
class BatchPart:
    """Some images of a step, with the texts scored in them and the detector's predictions."""

    batch: Batch
    texts: StepTexts
    predictions: Predictions
    points: Points
    classifier: TextClassifier
    """The detector's classifier of the texts."""
    compute: Compute
    """Device and precision of the step."""
    num_parts: int = 1
    """Number of parts that the step is split into; their losses are summed."""


@dataclass(frozen=True)
class Criterion:
    """The losses of a batch, configured by two sections of a config."""

    train: TrainSection
    pairs: PairsConfig | None
    teacher: CropEncoder | None = None
    """Encoder of crops with the original CLIP backbone, given if and only if `train.region_distillation` is set."""
    start: Detector | None = None
    """The detector that the training starts from, in eval mode, given if and only if `train.start_distillation` is
    greater than 0."""

    def __post_init__(self) -> None:
        if (self.teacher is None) != (self.train.region_distillation is None):
            raise ValueError(
                "a teacher (build_region_teacher) must be given if and only if train.region_distillation is set"
            )
        if (self.start is None) == (self.train.start_distillation > 0):
            raise ValueError("the starting detector must be given if and only if train.start_distillation is above 0")

    def assignment_rule(self, step: int) -> AssignmentRule:
        """Return the assignment rule of a step; `atss` replaces `task_aligned` in the first `atss_steps` steps."""
        waits = self.train.assignment == "task_aligned" and step < self.train.atss_steps
        return "atss" if waits else self.train.assignment

    def match_by_annotations(self, points: Points, batch: Batch, step: int) -> Matching | None:
        """Match a whole batch, with divisors summed over all ranks; return None if the rule needs predictions."""
        assignment = assign(self.assignment_rule(step), points, batch.targets, sizes=batch.sizes)
        if assignment is None:
            return None
        matched_points = self.match(assignment, batch, points)
        return Matching(assignment, matched_points, sum_over_ranks(matched_points.normalizers()))

    def match_by_predictions(self, part: BatchPart, step: int) -> Matching:
        """Match a part of a batch by a rule that needs its predictions, with divisors summed over all ranks.

        The divisors are multiplied by the number of parts, so that the sum of the parts' losses is their mean.
        """
        assignment = assign(
            self.assignment_rule(step),
            part.points,
            part.batch.targets,
            sizes=part.batch.sizes,
            predictions=part.predictions,
            classifier=part.classifier,
        )
        assert assignment is not None, "there are predictions"
        matched_points = self.match(assignment, part.batch, part.points)
        return Matching(assignment, matched_points, part.num_parts * sum_over_ranks(matched_points.normalizers()))

    def matching_of_part(self, whole: Matching, rows: slice, part: BatchPart) -> Matching:
        """Return the matching of some images of a batch, with the divisors of the whole batch."""
        if part.num_parts == 1:
            return whole
        assignment = whole.assignment.of_images(rows)
        return Matching(assignment, self.match(assignment, part.batch, part.points), whole.normalizers)

    def match(self, assignment: Assignment, batch: Batch, points: Points) -> MatchedPoints:
        """Return the matched points of a batch; without `pairs.box_loss`, boxes of pairs have only a class loss."""
        no_box_loss = batch.is_pair if self.pairs is not None and not self.pairs.box_loss else None
        return match_points(assignment, batch.targets, no_box_loss=no_box_loss, points=points)

    def losses(self, part: BatchPart, matching: Matching, *, num_pairs: int = 0) -> dict[str, Tensor]:
        """Compute the losses of a part by name, each a scalar, to be summed.

        Every rank must call this, since the divisors of the distillation losses are summed over the ranks.

        Args:
            matching: matching of the part's images.
            num_pairs: number of image-text pairs in the whole batch, the divisor of the image-label loss.
        """
        losses = detection_losses(
            part.predictions,
            matching.assignment,
            matching.matched_points,
            classifier=part.classifier,
            masks=ClassMasks(part.texts.mask, part.texts.mask_in_boxes),
            normalizers=matching.normalizers,
            low_precision=part.compute.low_precision,
        )
        if self.pairs is not None and self.pairs.use == "image_labels":
            pair_classifier = part.classifier.select(part.texts.of_pairs)
            image_loss = image_label_loss(part.predictions, part.batch, pair_classifier, part.points)
            losses["image"] = self.pairs.image_label_weight * image_loss / max(1, num_pairs)
        return losses | self.region_distillation(part) | self.start_distillation(part, matching.assignment)

    def region_distillation(self, part: BatchPart) -> dict[str, Tensor]:
        """Compute the loss `distill`, a weighted mean over the points of all ranks' regions; empty if not configured.

        Each part's loss is divided by its own number of points, and the parts are averaged.
        """
        options, batch = self.train.region_distillation, part.batch
        if options is None or self.teacher is None:
            return {}
        regions = select_regions(
            part.predictions, part.classifier, points=part.points, sizes=batch.sizes, options=options
        )
        num_points = sum_over_ranks(torch.tensor(len(regions.point_rows), device=batch.images.device))
        loss = region_loss(part.predictions.embeddings, regions, batch.images, batch.sizes, self.teacher)
        return {"distill": options.weight * loss / (part.num_parts * num_points.clamp(min=1))}

    def start_distillation(self, part: BatchPart, assignment: Assignment) -> dict[str, Tensor]:
        """Compute the weighted `start_distillation_losses`, averaged over the parts; empty if not configured."""
        if self.start is None:
            return {}
        with torch.no_grad(), part.compute.autocast():
            before = self.start(part.batch.images)
        losses = start_distillation_losses(part.predictions, before, unannotated_points(assignment))
        return {name: self.train.start_distillation / part.num_parts * loss for name, loss in losses.items()}


def backward(
    forward: nn.Module,
    detector: Detector,
    batch: Batch,
    texts: StepTexts,
    criterion: Criterion,
    *,
    step: int,
    compute: Compute,
) -> dict[str, Tensor]:
    """Compute the gradients of a step, in `.grad` of the parameters, and return its losses.

    The losses are those of all ranks' batches as one, computed in `train.accumulate` parts. Their divisors are known
    from the annotations before the first part; if the assignment depends on predictions, each part has its own
    divisors, and the parts are averaged. The losses of region and start distillation are averaged over the parts, too,
    where a part without any point has a loss of 0.

    Args:
        forward: the detector itself, or wrapped for several ranks (`data_parallel`) or in CUDA graphs
            (`GraphedDetector`).
    """
    whole, num_pairs = None, 0
    side_stream = SideStream(batch.images.device)
    parts = _parts(len(batch.targets), criterion.train.accumulate)
    sums: dict[str, Tensor] = {}
    for rows in parts:
        part_batch, part_texts = batch.of_images(rows), texts.of_images(rows)
        with _gradient_sync(forward, deferred=rows is not parts[-1]):
            with compute.autocast():
                predictions = forward(part_batch.images)
            classifier = detector.classifier(part_texts.embeddings, part_texts.class_ids)
            if rows is parts[0]:  # after the launch of the forward pass, with which it overlaps on a GPU
                with side_stream:
                    points = detector.points(batch.images)
                    whole = criterion.match_by_annotations(points, batch, step)
                    if criterion.pairs is not None:
                        num_pairs = int(sum_over_ranks(batch.is_pair.sum()))
            part = BatchPart(part_batch, part_texts, predictions, points, classifier, compute, len(parts))
            if whole is None:
                matching = criterion.match_by_predictions(part, step)
            else:
                matching = criterion.matching_of_part(whole, rows, part)
            losses = criterion.losses(part, matching, num_pairs=num_pairs)
            # DDP averages gradients over the ranks, but the losses are to be summed over them.
            (world_size() * torch.stack(list(losses.values())).sum()).backward()
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
    total = sum_over_ranks(torch.stack(list(sums.values())))
    return dict(zip(sums, total, strict=True))


def _parts(num_images: int, accumulate: int) -> list[slice]:
    """Split the images of a batch into non-empty parts, the same number on every rank."""
    num_parts = min(accumulate, int(min_over_ranks(torch.tensor(num_images))))  # ranks may have skipped samples
    bounds = [num_images * part // num_parts for part in range(num_parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def _gradient_sync(forward: nn.Module, *, deferred: bool) -> AbstractContextManager[object]:
    """Return a context for one part of a batch; `deferred` keeps ranks from exchanging gradients at its end."""
    return forward.no_sync() if deferred and isinstance(forward, DistributedDataParallel) else nullcontext()


def pad_to_common_size(batch: Batch) -> Batch:
    """Pad the batch as if the ranks' batches were one, so that a step is the same for any number of ranks.

    A rank without images gets a blank image, which no loss includes.
    """
    if world_size() == 1:
        return batch
    height, width = _shape_over_ranks(batch)
    if not batch.image_ids:
        images, sizes = torch.zeros(1, 3, height, width, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64)
        blank = (Targets.empty(),)
        return Batch.without_pairs(images, sizes, blank, (), skipped=batch.skipped, repaired=batch.repaired)
    if batch.images.shape[2:] == (height, width):
        return batch
    images, _ = pad_images(list(batch.images[:, :, :height, :width]), shapes=((height, width),))
    return replace(batch, images=images)


def _shape_over_ranks(batch: Batch) -> tuple[int, int]:
    """Return the height and width that the images of all ranks would be padded to in one batch."""
    annotated = batch.sizes[~batch.is_pair]
    own = annotated.amax(dim=0) if len(annotated) else torch.zeros(2, dtype=torch.int64)
    padded = torch.tensor([*batch.padded_pairs, *batch.images.shape[2:]])
    height, width, pairs_height, pairs_width, *largest = max_over_ranks(torch.cat([own, padded])).tolist()
    # The ranks' batches may be padded to shapes of different groups, and the largest sides of these may be no group's.
    shape = padded_shape(height, width, batch.shapes)
    if shape not in batch.shapes or not height:  # without annotated images, the pairs alone count
        return largest[0], largest[1]
    return max(shape[0], pairs_height), max(shape[1], pairs_width)


@torch.no_grad()
def set_initial_bias(detector: Detector, batch: Batch, text: Float[Tensor, "K D"], compute: Compute) -> None:
    """Solve for the bias at which the mean class probability over the first batch is 0.01 (RetinaNet's prior)."""
    with compute.autocast():
        predictions = detector(batch.images)
    inside = ~detector.points(batch.images).in_padding(batch.sizes)
    detector.set_bias(initial_bias(predictions.embeddings[inside], text, scale=detector.scale.item()))
