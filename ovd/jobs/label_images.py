"""Detect boxes of named classes in images, for a person to correct and a smaller detector to learn from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from ovd.build.text import queries_of_names
from ovd.build.trained import TrainedDetector
from ovd.data.export.boxes import SMALLEST_EXPORTED_PX
from ovd.data.export.labeled_set import LabeledImage, LabeledSet
from ovd.data.images.files import ImageFiles, name_below, readable_sizes
from ovd.data.loading.buckets import batches_by_padded_shape
from ovd.data.loading.loader import LoaderOptions, image_loader
from ovd.data.report import DataReport
from ovd.distributed import pins_memory
from ovd.format_count import format_count
from ovd.inference import BatchDetector, ImageBatch
from ovd.jobs.label_journal import LabelJournal, SelectedDetections, stat_of
from ovd.jobs.label_output import LabeledSets
from ovd.progress import progress
from ovd.structures import Batch, Detections
from ovd.visualize.boxes import SAME_PLACE_IOU, choose_shown

BELOW_THRESHOLD = 0.5
"""Share of its threshold from which a box below it is a candidate for review."""


@dataclass(frozen=True)
class Thresholds:
    """Classes to detect, and the thresholds for keeping their boxes."""

    min_scores: Mapping[str, float]
    """Minimum score of each class to detect, by name."""
    overlapping: bool = False
    """Whether every box above its threshold is kept; otherwise only the best of boxes that overlap."""

    def select(self, found: Detections) -> SelectedDetections:
        """Select the boxes at or above the thresholds of their classes, and candidates for review below them.

        Args:
            found: detections whose classes are positions in `min_scores`.
        """
        thresholds = list(self.min_scores.values())
        kept = choose_shown(found, thresholds, overlapping=self.overlapping)
        limits = torch.tensor(thresholds, dtype=found.scores.dtype)[found.classes]
        rest = found.take(found.scores < limits)
        rest = choose_shown(rest, [BELOW_THRESHOLD * limit for limit in thresholds], overlapping=self.overlapping)
        if len(kept.boxes) and len(rest.boxes):
            rest = rest.take((box_iou(rest.boxes, kept.boxes) < SAME_PLACE_IOU).all(dim=1))
        return SelectedDetections(kept, rest)


def label_images(
    trained: TrainedDetector,
    inference: BatchDetector,
    root: Path,
    paths: Sequence[Path],
    thresholds: Thresholds,
    report: DataReport,
    journal: LabelJournal,
    loading: LoaderOptions,
) -> LabeledSets:
    """Detect boxes of named classes in images.

    A batch holds only images with the same padded shape, so that the boxes of an image do not depend on the other
    images of its batch.

    Args:
        inference: inference of the detector.
        root: folder that contains all images; image names are relative to it.
        report: report that counts the images, and the boxes too small to export (F4).
        journal: journal with the boxes of an interrupted call with these settings, to which the others are added.

    Raises:
        ValueError: no image can be read.
    """
    names = tuple(thresholds.min_scores)
    queries = queries_of_names(trained, names)
    readable, sizes = readable_sizes(paths, report, stops=False)
    files = ImageFiles(tuple(paths[position] for position in readable.tolist()), sizes)
    file_names = [name_below(root, path) for path in files.paths]
    stats = [stat_of(path) for path in files.paths]  # before any image is read, so that later changes show
    before = (journal.find(name, stat) for name, stat in zip(file_names, stats, strict=True))
    found = {image: selected for image, selected in enumerate(before) if selected is not None}
    report.count_used(len(found))
    for fault in journal.repaired:
        report.count_repaired(*fault)

    def detect(batch: Batch) -> Sequence[Detections]:
        original_sizes = torch.from_numpy(files.sizes[list(batch.image_ids)])
        return inference.detect(queries, ImageBatch(batch.images, batch.sizes, original_sizes))

    left = np.setdiff1d(np.arange(len(files)), list(found))
    size, divisor = inference.size, inference.detector.size_divisor
    batches = image_loader(
        files,
        batches_by_padded_shape(files.sizes, loading.batch_size, size=size, divisor=divisor, only=left),
        size=size,
        workers=loading.workers,
        size_divisor=divisor,
        pin_memory=pins_memory(inference.device),
    )
    detected = _detected(_counted(batches, report, journal), detect)
    for item in progress(detected, len(left), "labeling"):
        if item is not None:
            image, detections = item
            found[image] = thresholds.select(detections)
            journal.add(file_names[image], stats[image], found[image])
    if not found:
        first = next(iter(report.first_records().values()), ["no images were given"])[0]
        raise ValueError(f"none of {format_count(len(paths), 'image')} can be read; the first: {first}")
    kept, below = [], []
    for image in sorted(found):
        selected, file = found[image], file_names[image]
        height, width = sizes[image].tolist()
        kept.append(_labeled(selected.kept, file, height, width, report))
        below.append(_labeled(selected.below, file, height, width, None))
    kept_set = LabeledSet(root, names, tuple(kept))
    return LabeledSets(kept_set, replace(kept_set, images=tuple(below)))


def _counted(batches: Iterator[Batch], report: DataReport, journal: LabelJournal) -> Iterator[Batch]:
    """Yield the batches after counting them in the report and adding their repairs to the journal.

    A repair that is in the journal already is not counted again: the interruption came before its image was labeled.
    """
    before = set(journal.repaired)
    for batch in batches:
        repaired = tuple(fault for fault in batch.repaired if fault not in before)
        report.add_batch(replace(batch, repaired=repaired))
        journal.add_repaired(repaired)
        yield batch


def _detected(
    batches: Iterator[Batch], detect: Callable[[Batch], Sequence[Detections]]
) -> Iterator[tuple[int, Detections] | None]:
    """Yield position and detections of each image, and None for each image that cannot be read."""
    for batch in batches:
        if batch.image_ids:
            yield from zip(batch.image_ids, detect(batch), strict=True)
        yield from [None] * len(batch.skipped)


def _labeled(found: Detections, file: str, height: int, width: int, report: DataReport | None) -> LabeledImage:
    """Return the image with the boxes that are large enough for every format; count them in `report`, if given."""
    large = (found.boxes[:, 2:] - found.boxes[:, :2] >= SMALLEST_EXPORTED_PX).all(dim=1)
    if report is not None:
        report.count_used(int(large.sum()), unit="box")
        for box in found.boxes[~large].tolist():
            rounded = [round(value, 1) for value in box]
            report.count_skipped("F4", f"{file}: a side of the box {rounded} is less than {SMALLEST_EXPORTED_PX:g} px")
    return LabeledImage(
        file,
        height,
        width,
        found.boxes[large].numpy(),
        found.classes[large].numpy(),
        found.scores[large].numpy(),
    )
