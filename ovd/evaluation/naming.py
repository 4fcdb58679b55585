"""Measurement of how often true boxes are named right, by CLIP before training and by the detector after it.

Training on some classes may bend the features away from the text space, so that other classes are no longer recognized.
Localization, scores and suppression play no part here: a true box is named right if its class is the most similar of
all names. CLIP names it in three ways: by its dense feature at one point, by the mean of this feature over the box, and
by its embedding of a crop of the box, the reference for what CLIP itself can recognize (CLIPSelf, arXiv:2310.01403,
section 3). The detector names it by its class embedding at the same point.

Rare classes are named wrong for two reasons: their features are poor, or the names that were trained on attract them.
Naming rare boxes among the rare names alone tells the two reasons apart.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchvision.ops import roi_align

from ovd.boxes import side_distances
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import LoaderOptions
from ovd.evaluation.confusions import most_confused
from ovd.evaluation.groups import FREQUENCIES, group_mask
from ovd.evaluation.naming_results import (
    NAMING_METHODS,
    BoxNaming,
    GroupNaming,
    MeanCosines,
    NamingReport,
    NamingShares,
    PointNaming,
)
from ovd.format_count import format_count
from ovd.inference import Inference
from ovd.model.assign import assign_fcos, nearest_matched_points
from ovd.model.backbone import Backbone
from ovd.model.crop_encoder import CropEncoder
from ovd.model.resample import resample_dense
from ovd.model.similarity import TextClassifier, points_per_chunk, unit_embeddings
from ovd.precision import on_device
from ovd.progress import progress
from ovd.structures import Batch, Points, Targets

BINS_PER_BOX_SIDE = 7
"""Number of bins per side of a box for the mean over it, with 2 x 2 samples in each bin."""


@torch.no_grad()
def measure_naming(
    inference: Inference,
    clip_backbone: Backbone,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    loading: LoaderOptions,
    *,
    clip_text: Float[Tensor, "C D"] | None = None,
    crops: CropEncoder,
    max_images: int | None = None,
) -> NamingReport:
    """Name every true box among all classes of the data set, by CLIP and by the detector.

    Args:
        inference: the detector and how it is run.
        clip_backbone: CLIP's own backbone, loaded anew, since training changes the modules that the detector was built
            from. It is moved to the detector's device.
        text: one unit row per category of `index`, in its order.
        index: the data set with its whole vocabulary.
        clip_text: CLIP's own text rows, if the detector has learned others.
        crops: encoder of tight crops, which are cut out of the images at the size that the detector gets.
        max_images: maximum number of images, evenly spread over the data set; None takes all.

    Raises:
        ValueError: `text` does not have one row per category.
        DataError: an image is missing or cannot be read.
    """
    namer = _BoxNamer(inference, clip_backbone, text, text if clip_text is None else clip_text, index, crops)
    if max_images is not None and max_images < len(index):
        index = index.take(np.linspace(0, len(index) - 1, max_images).round().astype(np.int64))
    at_boxes, at_points = _ClassSums(len(text), len(NAMING_METHODS)), _ClassSums(len(text), 2)
    num_without_point, named = 0, list[Int[Tensor, "K 2"]]()
    batches = inference.batches(index, loading)
    for batch, _ in progress(batches, len(batches), "naming true boxes"):
        batch = batch.to(inference.device)
        points = inference.detector.points(batch.images)
        matched = assign_fcos(points, batch.targets, sizes=batch.sizes).matched
        inside = _points_in_boxes(points, batch.targets, matched)
        num_without_point += sum(len(targets.boxes) for targets in batch.targets) - int(inside.is_nearest.sum())
        if len(inside.classes) == 0:
            continue
        named_points, named_boxes = namer.name(batch, inside)
        at_points.add(named_points)
        at_boxes.add(named_boxes)
        named.append(torch.stack([named_boxes.classes, named_boxes.predicted], dim=1).cpu())
    report = _report(at_boxes, at_points, index, num_without_point, crops.views[0].side_px)
    pairs = torch.cat(named).numpy() if named else np.zeros((0, 2), np.int64)
    return replace(report, confusions=most_confused(pairs, index.categories))


def _report(
    at_boxes: "_ClassSums", at_points: "_ClassSums", index: AnnotationIndex, num_without_point: int, crop_side: int
) -> NamingReport:
    groups, rare_among_rare, base_bias = [], None, None
    for group in FREQUENCIES:
        members = torch.from_numpy(group_mask(group, index.categories))
        if not at_boxes.counts[members].any():
            continue
        shares = NamingShares(*at_boxes.right(members))
        before, after = at_points.right(members)
        groups.append(
            GroupNaming(
                group,
                BoxNaming(at_boxes.count(members), shares, at_boxes.cosines(members)),
                PointNaming(at_points.count(members), before, after, at_points.cosines(members)),
            )
        )
        if group == "rare":
            rare_among_rare = NamingShares(*at_boxes.right_among_rare(members))
            base_bias = NamingShares(
                *(getattr(rare_among_rare, method) - getattr(shares, method) for method in NAMING_METHODS)
            )
    return NamingReport(
        groups=tuple(groups),
        num_classes=len(index.categories),
        num_images=len(index),
        num_boxes_without_point=num_without_point,
        crop_side_px=crop_side,
        rare_among_rare=rare_among_rare,
        base_bias=base_bias,
    )


@dataclass(frozen=True)
class _PointsInBoxes:
    """Points inside true boxes of a batch, by image; a point in several boxes has an entry for each."""

    images: Int[Tensor, " N"]
    points: Int[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]
    """True box around each point."""
    classes: Int[Tensor, " N"]
    """Class of the true box."""
    is_nearest: Bool[Tensor, " N"]
    """Whether the point is the nearest of those matched to the box."""


def _points_in_boxes(points: Points, targets: tuple[Targets, ...], matched: Int[Tensor, "B P"]) -> _PointsInBoxes:
    """Find all points inside each box on the level of its nearest matched point; none for a box without one."""
    parts = []
    for image, (true, matched_to) in enumerate(zip(targets, matched, strict=True)):
        nearest = nearest_matched_points(points, true.boxes, matched_to)
        inside = (side_distances(points.centers[:, None], true.boxes) > 0).all(dim=2)
        same_level = points.strides[:, None] == points.strides[nearest]
        point, box = (inside & same_level & (nearest >= 0)).nonzero().unbind(dim=1)
        is_nearest = point == nearest[box]
        parts.append((torch.full_like(point, image), point, true.boxes[box], true.classes[box], is_nearest))
    return _PointsInBoxes(*(torch.cat(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _NamingResult:
    """Names of N points or boxes by W methods: of boxes by all `NAMING_METHODS`, of points by CLIP and the detector."""

    classes: Int[Tensor, " N"]
    """Classes of the true boxes: the right names."""
    predicted: Int[Tensor, " N"]
    """Classes that the detector names."""
    right: Bool[Tensor, "N W"]
    right_among_rare: Bool[Tensor, "N W"] | None
    """The same if only the rare names may be chosen; None for points, and without a rare name."""
    cosines: Float[Tensor, "N 2"]
    """Cosines in the order of the fields of `MeanCosines`."""


class _BoxNamer:
    """CLIP and a detector, with the names that they choose from."""

    def __init__(
        self,
        inference: Inference,
        clip_backbone: Backbone,
        text: Float[Tensor, "C D"],
        clip_text: Float[Tensor, "C D"],
        index: AnnotationIndex,
        crops: CropEncoder,
    ):
        if len(text) != len(index.categories):
            raise ValueError(
                f"{index.path} has {format_count(len(index.categories), 'class', 'classes')}, but the number of text "
                f"rows is {len(text):,}"
            )
        shared = next(clip_backbone.parameters()) is next(inference.detector.backbone.parameters())
        assert not shared, "the detector's own backbone does not tell what CLIP was"
        self._inference = inference
        compute = inference.compute
        self._clip = clip_backbone.to(compute.device).to(memory_format=compute.frozen_memory_format)
        self._clip_text = inference.detector.classifier(clip_text)
        self._own_text = inference.classifier(text)
        self._rare = torch.from_numpy(group_mask("rare", index.categories)).to(inference.device)
        self._crops = crops

    def name(self, batch: Batch, inside: _PointsInBoxes) -> tuple[_NamingResult, _NamingResult]:
        """Name the points, and each box that has its nearest matched point among them."""
        detector, images = self._inference.detector, batch.images
        pixels = detector.normalization(images).contiguous(memory_format=self._inference.compute.frozen_memory_format)
        nearest = inside.is_nearest
        image_of_box, boxes, classes = inside.images[nearest], inside.boxes[nearest], inside.classes[nearest]
        with on_device(images.device), self._inference.compute.autocast():
            dense, own_dense = self._clip.dense(pixels), detector.backbone.dense(pixels)
            after = unit_embeddings(detector(images).embeddings[inside.images, inside.points])
        crop_embeddings = self._crops(
            images, batch.sizes, [boxes[image_of_box == image] for image in range(len(images))]
        )
        before, own = (self._at_points(feature, inside, images) for feature in (dense, own_dense))
        predicted = self._best(after, self._own_text)
        named_points = _NamingResult(
            classes=inside.classes,
            predicted=predicted,
            right=torch.stack([self._best(before, self._clip_text), predicted], dim=1) == inside.classes[:, None],
            right_among_rare=None,
            cosines=torch.stack([(after * before).sum(dim=1), (own * before).sum(dim=1)], dim=1),
        )
        by_clip = (
            before[nearest],
            mean_over_boxes(dense.float(), image_of_box, boxes, self._clip.strides[-1]),
            torch.cat(crop_embeddings),
        )
        ways = [*((embeddings, self._clip_text) for embeddings in by_clip), (after[nearest], self._own_text)]
        among_all = [self._best(embeddings, names) for embeddings, names in ways]
        right_among_rare = None
        if self._rare.any():
            among_rare = [self._best(embeddings, names.select(self._rare)) for embeddings, names in ways]
            right_among_rare = torch.stack(among_rare, dim=1) == classes[:, None]
        named_boxes = _NamingResult(
            classes=classes,
            predicted=predicted[nearest],
            right=torch.stack(among_all, dim=1) == classes[:, None],
            right_among_rare=right_among_rare,
            cosines=named_points.cosines[nearest],
        )
        return named_points, named_boxes

    def _at_points(
        self, dense: Float[Tensor, "B D h w"], inside: _PointsInBoxes, images: UInt8[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "N D"]:
        """Return the dense feature at the points, resampled as for each pyramid level."""
        stride = self._clip.strides[-1]
        levels = [
            resample_dense(dense, stride, (-(-images.shape[-2] // level), -(-images.shape[-1] // level)), level)
            for level in self._inference.detector.strides
        ]
        return torch.cat([level.flatten(2) for level in levels], dim=2)[inside.images, :, inside.points]

    def _best(self, embeddings: Float[Tensor, "N D"], names: TextClassifier) -> Int[Tensor, " N"]:
        """Return the class of the name most similar to each embedding."""
        chunks = embeddings.split(points_per_chunk(len(names), embeddings.device))
        return names.class_ids[torch.cat([names.cosines(chunk).argmax(dim=1) for chunk in chunks])]


def mean_over_boxes(
    dense: Float[Tensor, "B D h w"], images: Int[Tensor, " K"], boxes: Float[Tensor, "K 4"], stride: int
) -> Float[Tensor, "K D"]:
    """Compute the mean of a dense feature over each box, normalized to unit length.

    The feature is interpolated bilinearly between cells and constant beyond the outer ones.

    Args:
        images: row of each box's image in the batch.
        boxes: xyxy in pixels.
        stride: stride of the dense feature in pixels.
    """
    regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1).to(dense.dtype)
    bins = roi_align(dense, regions, BINS_PER_BOX_SIDE, spatial_scale=1 / stride, sampling_ratio=2, aligned=True)
    return unit_embeddings(bins.mean(dim=(2, 3)))


class _ClassSums:
    """Counts and sums per class, from which the means over any group of classes are computed."""

    def __init__(self, num_classes: int, num_ways: int):
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self._right, self._right_among_rare, self._cosines = (
            torch.zeros(rows, num_classes, dtype=torch.float64) for rows in (num_ways, num_ways, 2)
        )

    def add(self, named: _NamingResult) -> None:
        classes = named.classes.cpu()
        self.counts += classes.bincount(minlength=len(self.counts))
        self._right.index_add_(1, classes, named.right.cpu().double().T)
        self._cosines.index_add_(1, classes, named.cosines.cpu().double().T)
        if named.right_among_rare is not None:
            self._right_among_rare.index_add_(1, classes, named.right_among_rare.cpu().double().T)

    def count(self, members: Bool[Tensor, " C"]) -> int:
        return int(self.counts[members].sum())

    def right(self, members: Bool[Tensor, " C"]) -> list[float]:
        """Compute the share of right names in each way."""
        return self._means(self._right, members)

    def right_among_rare(self, members: Bool[Tensor, " C"]) -> list[float]:
        """Compute the share of right names in each way if only the rare names may be chosen."""
        return self._means(self._right_among_rare, members)

    def cosines(self, members: Bool[Tensor, " C"]) -> MeanCosines:
        return MeanCosines(*self._means(self._cosines, members))

    def _means(self, sums: Float[Tensor, "V C"], members: Bool[Tensor, " C"]) -> list[float]:
        count = self.count(members)
        return [float(of_value[members].sum()) / count for of_value in sums]
