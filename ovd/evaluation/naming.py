"""How often true boxes are named right, by CLIP before training and by the detector after it.

Training on some classes may bend the features away from the text space, so that the other classes are no longer
recognized. Here localization, scores and suppression are left aside: at the point of a true box that is nearest to its
centre, is the box's class the most similar text, for CLIP's dense feature (before) and for the detector's class
embedding (after)?
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from ovd.boxes import side_distances
from ovd.data.index import AnnotationIndex
from ovd.data.loader import eval_loader
from ovd.evaluation.report import ClassRow
from ovd.files import whole_file
from ovd.inference import Inference
from ovd.model.assign import assign_fcos
from ovd.model.backbone import Backbone
from ovd.model.gates import resample_dense
from ovd.model.similarity import CHUNK_ELEMENTS, cosine_logits, unit_embeddings
from ovd.precision import autocast, memory_format
from ovd.progress import progress
from ovd.structures import Points, Targets

Group = Literal["all", "base", "rare", "common", "frequent"]
"""Classes by LVIS's frequency. The rare ones are the novel ones, where a detector was trained on base classes."""
_FREQUENCIES: dict[Group, tuple[str | None, ...]] = {
    "all": ("r", "c", "f", None),
    "base": ("c", "f"),
    "rare": ("r",),
    "common": ("c",),
    "frequent": ("f",),
}


@dataclass(frozen=True)
class NamingScores:
    """Means over a number of points, each in a true box."""

    count: int
    naming_before: float
    """Share of points where the box's class is the most similar of all texts to CLIP's dense feature."""
    naming_after: float
    """The same for the detector's class embedding."""
    cosine: float
    """Between the detector's class embedding and CLIP's dense feature."""
    backbone_cosine: float
    """Between the dense features of the detector's backbone and of CLIP's: how far the backbone drifted."""


@dataclass(frozen=True)
class GroupNaming:
    """The true boxes of some of the classes."""

    group: Group
    boxes: NamingScores
    """At one point per box, of those matched to it the one nearest to its centre."""
    points: NamingScores
    """At every point inside a box on the pyramid level of that point. `naming_after` may be lower here without harm:
    away from the centre a detector is trained to see background."""


@dataclass(frozen=True)
class NamingReport:
    """How often true boxes are named right, for each group of classes that has a true box with a point."""

    groups: tuple[GroupNaming, ...]
    """`all` first; only that one where the annotation file gives no frequencies."""
    num_classes: int
    """Names to choose from."""
    num_images: int
    num_boxes_without_point: int
    """Too small, or covered by smaller ones: no point is matched to them, and they count nowhere else."""


@torch.no_grad()
def measure_naming(
    inference: Inference,
    clip_backbone: Backbone,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    *,
    batch_size: int,
    workers: int,
    max_images: int | None = None,
) -> NamingReport:
    """Name every true box among all classes of the data set, by CLIP and by the detector.

    Images of unlike shape in a batch are padded to a common size, as in evaluation; that can move a score a little.

    Args:
        inference: the detector and how it is run.
        clip_backbone: CLIP's own, loaded anew, since training changes the modules that the detector was built from.
            Moved to the detector's device.
        text: one unit row per category of `index`, in its order.
        index: with its whole vocabulary.
        batch_size, workers: as for `Inference.dataset`.
        max_images: at most so many, evenly spread over the data set; None takes all.

    Raises:
        ValueError: not one row of text per category.
        DataError: an image is missing or cannot be read.
    """
    detector = inference.detector
    if len(text) != len(index.categories):
        raise ValueError(f"{index.path} has {len(index.categories)} classes, but there are {len(text)} rows of text")
    shared = next(clip_backbone.parameters()) is next(detector.backbone.parameters())
    assert not shared, "the detector's own backbone does not tell what CLIP was"
    device = inference.device
    clip_backbone.to(device).to(memory_format=memory_format(inference.low_precision))
    text = text.to(device)
    if max_images is not None and max_images < len(index):
        index = index.take(np.linspace(0, len(index) - 1, max_images).round().astype(np.int64))

    at_boxes, at_points = _Tally(len(text)), _Tally(len(text))
    num_without_point = 0
    loader = eval_loader(
        index, size=inference.size, batch_size=batch_size, workers=workers, size_divisor=detector.size_divisor
    )
    for batch, _ in progress(loader, -(-len(index) // batch_size), "naming true boxes"):
        batch = batch.to(device)
        points = detector.points(batch.images)
        matched = assign_fcos(points, batch.targets, sizes=batch.sizes).matched
        inside = _points_in_boxes(points, batch.targets, matched)
        num_without_point += sum(len(targets.boxes) for targets in batch.targets) - int(inside.is_nearest.sum())
        if len(inside.classes) == 0:
            continue
        values = _compare(inference, clip_backbone, text, batch.images, inside)
        at_boxes.add(inside.classes[inside.is_nearest], values[inside.is_nearest])
        at_points.add(inside.classes, values)

    groups = []
    for group, frequencies in _FREQUENCIES.items():
        members = torch.tensor([category.frequency in frequencies for category in index.categories], dtype=torch.bool)
        if at_boxes.counts[members].any():
            groups.append(GroupNaming(group, at_boxes.scores(members), at_points.scores(members)))
    return NamingReport(tuple(groups), len(text), len(index), num_without_point)


def nearest_matched_points(
    points: Points, boxes: Float[Tensor, "R 4"], matched: Int[Tensor, " P"]
) -> Int[Tensor, " R"]:
    """Of the points matched to each box the one nearest to its centre, the first of equal ones; -1 without any.

    Args:
        matched: which box each point is matched to, a row of `Assignment.matched`.
    """
    offsets = (points.centers[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=2)
    is_matched = matched[:, None] == torch.arange(len(boxes), device=matched.device)
    offset, nearest = torch.where(is_matched, offsets, torch.inf).min(dim=0)
    return torch.where(offset < torch.inf, nearest, -1)


def group_average_precision(classes: Sequence[ClassRow]) -> dict[Group, float]:
    """Mean AP of each group's classes that have a true box, 0 to 1; `rare` is LVIS's APr, `all` is AP."""
    means: dict[Group, float] = {}
    for group, frequencies in _FREQUENCIES.items():
        known = [row.AP for row in classes if (row.frequency or None) in frequencies and row.AP > -1]
        if known:
            means[group] = float(np.mean(known))
    return means


def format_naming(report: NamingReport, average_precision: Mapping[Group, float]) -> str:
    """A table for a console: a row per group of classes, before and after.

    Args:
        average_precision: of the detector, from `group_average_precision`.
    """
    lines = [
        f"Naming of true boxes among {report.num_classes} classes (per cent right), CLIP before, detector after",
        f"{'classes':<8}  {'boxes':>7}  before   after  change  cosine  backbone      AP",
    ]
    for item in report.groups:
        scores = item.boxes
        before, after = 100 * scores.naming_before, 100 * scores.naming_after
        precision = f"{100 * average_precision[item.group]:6.2f}" if item.group in average_precision else f"{'-':>6}"
        lines.append(
            f"{item.group:<8}  {scores.count:>7}  {before:6.2f}  {after:6.2f}  {after - before:+6.2f}  "
            f"{scores.cosine:6.3f}  {scores.backbone_cosine:8.3f}  {precision}"
        )
    lines.append("")
    lines += [
        f"- at all {item.points.count} points inside boxes ({item.group}): "
        f"{100 * item.points.naming_before:.2f} before, {100 * item.points.naming_after:.2f} after"
        for item in report.groups
        if item.group in ("all", "rare")
    ]
    lines += [
        "- cosine: the detector's class embedding with CLIP's dense feature; backbone: its own with CLIP's",
        f"- {report.num_images} images; boxes left out, as no point is matched to them: "
        f"{report.num_boxes_without_point}",
    ]
    return "\n".join(lines) + "\n"


def write_naming(report: NamingReport, folder: Path) -> None:
    """Writes naming.json and naming.png, replacing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "naming.json") as file:
        json.dump(asdict(report), file, indent=2, allow_nan=False)
        file.write("\n")
    draw_naming(report).savefig(folder / "naming.png")


def draw_naming(report: NamingReport) -> Figure:
    """Bars of the share of true boxes named right, before and after, by group of classes."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.4
    positions = np.arange(len(report.groups))
    for offset, label, color, shares in (
        (-width / 2, "before (CLIP)", "0.65", [item.boxes.naming_before for item in report.groups]),
        (width / 2, "after (detector)", "tab:blue", [item.boxes.naming_after for item in report.groups]),
    ):
        bars = axes.bar(positions + offset, [100 * share for share in shares], width, label=label, color=color)
        axes.bar_label(bars, fmt="%.1f", fontsize="small")
    axes.set_xticks(positions, [f"{item.group}\n{item.boxes.count} boxes" for item in report.groups])
    axes.set(ylim=(0, 108), ylabel="true boxes named right (%)")
    axes.set_title(f"Naming of true boxes among {report.num_classes} classes", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@dataclass(frozen=True)
class _PointsInBoxes:
    """Points inside true boxes of a batch; a point in several boxes comes several times."""

    images: Int[Tensor, " N"]
    points: Int[Tensor, " N"]
    classes: Int[Tensor, " N"]
    """Of the true box."""
    is_nearest: Bool[Tensor, " N"]
    """Whether it is the box's nearest matched point."""


def _points_in_boxes(points: Points, targets: tuple[Targets, ...], matched: Int[Tensor, "B P"]) -> _PointsInBoxes:
    """All points inside each box on the level of its nearest matched point; none where no point is matched to it."""
    parts = []
    for image, (true, matched_to) in enumerate(zip(targets, matched, strict=True)):
        nearest = nearest_matched_points(points, true.boxes, matched_to)
        inside = (side_distances(points.centers[:, None], true.boxes) > 0).all(dim=2)
        same_level = points.strides[:, None] == points.strides[nearest]
        point, box = (inside & same_level & (nearest >= 0)).nonzero().unbind(dim=1)
        parts.append((torch.full_like(point, image), point, true.classes[box], point == nearest[box]))
    return _PointsInBoxes(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _compare(
    inference: Inference,
    clip_backbone: Backbone,
    text: Float[Tensor, "C D"],
    images: UInt8[Tensor, "B 3 H W"],
    inside: _PointsInBoxes,
) -> Float[Tensor, "N 4"]:
    """At each point what `NamingScores` is the mean of, in its order."""
    detector, layout = inference.detector, memory_format(inference.low_precision)
    pixels = ((images.float() - detector.mean) / detector.std).contiguous(memory_format=layout)

    def dense(backbone: Backbone) -> Float[Tensor, "N D"]:
        feature, stride = backbone.dense(pixels), backbone.strides[-1]
        levels = [
            resample_dense(feature, stride, (-(-images.shape[-2] // level), -(-images.shape[-1] // level)), level)
            for level in detector.strides
        ]
        return torch.cat([level.flatten(2) for level in levels], dim=2)[inside.images, :, inside.points]

    with autocast(images.device, inference.low_precision):
        before, own = dense(clip_backbone), dense(detector.backbone)
        after = unit_embeddings(detector(images).embeddings[inside.images, inside.points])
    return torch.stack(
        [
            (_nearest(before, text) == inside.classes).float(),
            (_nearest(after, text) == inside.classes).float(),
            (after * before).sum(dim=1),
            (own * before).sum(dim=1),
        ],
        dim=1,
    )


def _nearest(embeddings: Float[Tensor, "N D"], text: Float[Tensor, "C D"]) -> Int[Tensor, " N"]:
    """The most similar text's row."""
    chunks = embeddings.split(max(1, CHUNK_ELEMENTS // len(text)))
    return torch.cat([cosine_logits(chunk, text, scale=1.0, bias=0.0).argmax(dim=1) for chunk in chunks])


class _Tally:
    """Counts and sums by class, from which follow the means over any group of classes."""

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self._sums = torch.zeros(num_classes, 4, dtype=torch.float64)

    def add(self, classes: Int[Tensor, " N"], values: Float[Tensor, "N 4"]) -> None:
        self.counts += classes.bincount(minlength=len(self.counts)).cpu()
        self._sums.index_add_(0, classes.cpu(), values.cpu().double())

    def scores(self, members: Bool[Tensor, " C"]) -> NamingScores:
        count = int(self.counts[members].sum())
        return NamingScores(count, *(self._sums[members].sum(dim=0) / count).tolist())
