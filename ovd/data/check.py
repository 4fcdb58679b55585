"""Check of a whole data set, read as in training, that reports what is wrong with each record."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ovd.data.images.image_file import ImageError
from ovd.data.images.read import decode_image
from ovd.data.index import AnnotationIndex, images_per_class
from ovd.data.pairs.pair import caption_fault
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataReport
from ovd.fault import Fault
from ovd.format_count import format_count
from ovd.progress import progress
from ovd.shapes import Int64
from ovd.threads import map_ahead

NUM_THREADS = 8
IN_FLIGHT = 64

Found = list[tuple[Literal["skipped", "repaired"], Fault]]
"""Faults of a sample, each with its treatment; empty for a sound sample."""


@dataclass(frozen=True)
class ClassCount:
    """A class and the number of its images and objects."""

    name: str
    frequency: str
    """LVIS's r, c or f; empty if the file states none."""
    images: int
    objects: int


def check_images(
    index: AnnotationIndex, report: DataReport, left_out: Int64[np.ndarray, " K"] | None = None
) -> AnnotationIndex:
    """Decode every image and compare its size with the annotation; `report` counts the faults.

    Args:
        left_out: rows of objects that are already counted as left out.

    Returns:
        The index of the images that training can use.
    """
    is_usable = np.zeros(len(index), dtype=bool)

    def look(image: int) -> Found:
        record = index.record(image)
        try:
            decoded = decode_image(index.encoded(image), expected_size=(record.height, record.width))
        except ImageError as error:
            return [("skipped", error.fault)]
        return [("repaired", fault.at(record.path)) for fault in decoded.repairs()]

    looked_at = map_ahead(look, range(len(index)), threads=NUM_THREADS, ahead=IN_FLIGHT)
    for image, found in enumerate(progress(looked_at, len(index), "reading images")):
        is_usable[image] = _count(found, report)
    usable = index.take(np.flatnonzero(is_usable))
    is_lost = ~is_usable[index.boxes.images_of_values()]
    if left_out is not None:
        is_lost[left_out] = False
    report.count_left_out_with_images(
        int(is_lost.sum()) + int((~is_usable[index.crowd_boxes.images_of_values()]).sum())
    )
    return usable


def check_pairs(shards: PairShards, report: DataReport) -> None:
    """Decode every image and check every caption; the shards themselves were checked when they were opened."""

    def look(position: int) -> Found:
        where = f"{shards.directory}/{shards.location(position)}"
        try:
            pair = shards[position]
            decoded = decode_image(pair.image)
        except ImageError as error:
            return [("skipped", error.fault.at(where))]
        except ValueError as error:
            return [("skipped", Fault("F30", str(error)))]
        if (fault := caption_fault(pair.caption)) is not None:
            return [("skipped", fault.at(where))]
        return [("repaired", fault.at(where)) for fault in decoded.repairs()]

    looked_at = map_ahead(look, range(len(shards)), threads=NUM_THREADS, ahead=IN_FLIGHT)
    for found in progress(looked_at, len(shards), "reading pairs"):
        _count(found, report)


def class_counts(index: AnnotationIndex) -> list[ClassCount]:
    """Count images and objects of every class of the vocabulary, sorted by descending number of images."""
    images_and_classes = (index.classes.images_of_values(), index.classes.values)
    num_images = images_per_class(*images_and_classes, len(index.categories)).tolist()
    num_objects = np.bincount(index.classes.values, minlength=len(index.categories)).tolist()
    counts = [
        ClassCount(category.name, category.frequency or "", num_images[row], num_objects[row])
        for row, category in enumerate(index.categories)
    ]
    return sorted(counts, key=lambda count: (-count.images, -count.objects, count.name))


def describe(index: AnnotationIndex, report: DataReport, usable: AnnotationIndex) -> str:
    """Describe a data set and its faults in text for people; class counts are those of `usable`, if it has an image."""
    counts = class_counts(usable if len(usable) else index)
    rows = [f"{count.images:>9,} {count.objects:>10,}  {count.frequency:1}  {count.name}" for count in counts]
    without = sum(count.objects == 0 for count in counts)
    classes_by_frequency = Counter(count.frequency for count in counts if count.frequency)
    groups = ", ".join(f"{classes_by_frequency[letter]} {letter}" for letter in "rcf" if letter in classes_by_frequency)
    sides = f", {index.image_sizes.min()} to {index.image_sizes.max()} px per side" if len(index) else ""
    empty = int((np.diff(index.boxes.offsets) == 0).sum())
    objects, crowds = len(index.boxes.values), len(index.crowd_boxes.values)
    classes = f"{format_count(len(counts), 'class', 'classes')}{f' ({groups})' if groups else ''}"
    lines = [
        f"{format_count(len(index), 'image')}{sides}, {empty:,} of them without objects",
        f"{format_count(objects, 'object')} and {format_count(crowds, 'crowd region')}",
        f"{classes}, {without:,} of them without objects",
        "",
        *describe_findings(report),
        "",
        "   images    objects     class",
        *rows,
    ]
    return "\n".join(lines)


def describe_findings(report: DataReport) -> Iterator[str]:
    """Yield a line for each kind of finding, followed by its first records."""
    counts = report.counts()
    if not counts:
        yield "no faulty records"
    for finding, count in counts.items():
        yield f"{finding}: {count:,}"
        yield from (f"    {record}" for record in report.first_records()[finding])


def _count(found: Found, report: DataReport) -> bool:
    """Count the faults of a sample, and return whether it can be used."""
    for kind, fault in found:
        if kind == "skipped":
            report.count_skipped(*fault)
            return False
        report.count_repaired(*fault)
    report.count_used()
    return True
