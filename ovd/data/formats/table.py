"""The `AnnotationTable` that every reader of annotations returns, and the two products that are made of it.

A reader (coco_json.py, voc.py, yolo.py) turns files into one `AnnotationTable` and checks them record by record. Two
products are made of the table: an `AnnotationIndex`, which training and inference work on, and a `Truth`, which the
evaluators compare detections with.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ovd.choices import DataFormatName
from ovd.data.category import UNCOUNTED, Category
from ovd.data.formats.options import FormatOptions
from ovd.data.index import AnnotationIndex, Ragged, images_per_class
from ovd.data.report import DataError, DataReport
from ovd.data.truth import Truth, TruthImage
from ovd.shapes import Bool, Float32, Float64, Int64

LARGEST_COORDINATE = 1e9
"""Limit of coordinates and sides, far above those of any image; a comparison with it also rejects NaN and infinity."""

SMALLEST_ANNOTATED_PX = 1.0

ROUNDING_PX = 1e-3
"""Distance of a corner outside its image that counts as rounding of decimals in COCO JSON; more is a fault."""


@dataclass(frozen=True)
class ReadRequest:
    """The location of a data set, and the products that a reader's table has to support."""

    annotations: Path
    images: Path | None
    options: FormatOptions
    index: bool
    """Whether an `AnnotationIndex` is to be made; if so, every image needs a file and a size."""
    truth: bool
    """Whether a `Truth` is to be made; if so, areas are read."""
    file_of: Callable[[str], str] = str
    """Function from the image name in a record to the path relative to the image folder."""
    skips_images: bool = False
    """Whether to leave out an image whose size is neither stated nor readable even if a `Truth` is to be made."""

    keeps_parents: bool = False
    """Whether an `AnnotationIndex` keeps classes that are only the parent of others."""

    @property
    def is_for_evaluation(self) -> bool:
        """Whether an image of unknown size is an error, since a metric over the others would be another metric."""
        return self.truth and not self.skips_images


@dataclass(frozen=True)
class FederatedLabels:
    """LVIS's image-level labels: for each image, the category ids that were verified to be absent, and those that are
    not annotated exhaustively."""

    negative_category_ids: tuple[tuple[int, ...], ...]
    not_exhaustive_category_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AnnotationNames:
    """Names of the annotations of a JSON file, for messages."""

    path: Path
    ids: Int64[np.ndarray, " M"]

    def __call__(self, row: int) -> str:
        return f"{self.path}: annotation {self.ids[row]}"


@dataclass(frozen=True)
class AnnotationTable:
    """The checked records of N images, C classes and M objects, in the order of their files; boxes are not cleaned."""

    path: Path
    categories: tuple[Category, ...]
    """Classes in ascending order of id."""
    image_ids: Int64[np.ndarray, " N"]
    image_of_object: Int64[np.ndarray, " M"]
    """Position of each object's image, 0..N-1."""
    class_of_object: Int64[np.ndarray, " M"]
    """Row of each object's class, 0..C-1."""
    boxes_xywh: Float64[np.ndarray, "M 4"]
    is_crowd: Bool[np.ndarray, " M"]
    name_of_object: Callable[[int], str]
    """The file and record of an object, for messages."""
    areas_px: Float64[np.ndarray, " M"] | DataError | None = None
    """Areas for a `Truth`, or the error of a faulty area; may be None if no `Truth` is to be made."""
    images_root: Path | None = None
    image_files: tuple[str, ...] | None = None
    """Paths relative to `images_root`, or absolute; may be None if no index is to be made."""
    image_sizes: Int64[np.ndarray, "N 2"] | None = None
    """Height and width in pixels; may be None if no index is to be made."""
    is_available: Bool[np.ndarray, " N"] | None = None
    """False for images that were never released or cannot be read (`available_part`); None if all are available."""
    federated: FederatedLabels | None = None
    rounding_px: float = ROUNDING_PX
    """Distance of a corner outside its image, or of a side from `SMALLEST_ANNOTATED_PX`, above which it is a fault."""

    def __post_init__(self) -> None:
        """Check the properties that all users of a table rely on.

        Raises:
            ValueError: category ids do not ascend, an object has no image or no class, or a box is not finite.
        """
        ids = [category.id for category in self.categories]
        if any(one >= other for one, other in pairwise(ids)):
            raise ValueError(f"{self.path}: the table's category ids do not ascend, each once")
        for rows, count, what in (
            (self.image_of_object, len(self.image_ids), "image"),
            (self.class_of_object, len(self.categories), "class"),
        ):
            if len(rows) != len(self.boxes_xywh) or not ((rows >= 0) & (rows < count)).all():
                raise ValueError(f"{self.path}: the table has no {what} for each of its objects")
        if len(not_finite := np.flatnonzero(~np.isfinite(self.boxes_xywh).all(axis=1))):
            raise ValueError(f"{self.name_of_object(int(not_finite[0]))}: the table has a box that is not finite")


def index_of(table: AnnotationTable, format: DataFormatName, report: DataReport) -> AnnotationIndex:
    """Clean the boxes and group all labels by image.

    Boxes with a side under 1 px are skipped (F4), boxes partly outside their image are clamped to it and those wholly
    outside are skipped (F5); `report` counts these and the boxes that are used.

    Args:
        table: a table whose images are all available (`available_part`).

    Raises:
        DataError: too many boxes were skipped.
    """
    assert table.image_sizes is not None
    assert table.image_files is not None
    boxes, is_kept = clean_boxes(table, table.image_sizes[table.image_of_object], report)
    report.raise_if_too_many(len(boxes), unit="box")
    num_images = len(table.image_ids)

    def gather(values: np.ndarray, selected: Bool[np.ndarray, " M"]) -> Ragged:
        # A stable sort keeps the file's order within an image.
        order = np.flatnonzero(selected)[np.argsort(table.image_of_object[selected], kind="stable")]
        counts = np.bincount(table.image_of_object[selected], minlength=num_images)
        return Ragged.from_rows(values[order], counts)

    row_of_id = {category.id: row for row, category in enumerate(table.categories)}

    def rows_of(labels: tuple[tuple[int, ...], ...]) -> Ragged:
        values = [row_of_id[category_id] for image_labels in labels for category_id in image_labels]
        return Ragged.from_rows(np.array(values, dtype=np.int64), [len(row) for row in labels])

    federated = table.federated or _no_labels(num_images)
    is_object = is_kept & ~table.is_crowd
    categories = table.categories
    if table.federated is None:
        # Frequencies belong to LVIS; in other formats they are only for the report of an evaluation.
        categories = tuple(replace(category, frequency=None) for category in categories)
    return AnnotationIndex(
        path=table.path,
        format=format,
        categories=_counted(categories, table, is_object),
        images_root=table.images_root,
        image_ids=table.image_ids,
        image_sizes=table.image_sizes,
        image_files=table.image_files,
        boxes=gather(boxes, is_object),
        classes=gather(table.class_of_object, is_object),
        crowd_boxes=gather(boxes, is_kept & table.is_crowd),
        negative_classes=rows_of(federated.negative_category_ids),
        not_exhaustive_classes=rows_of(federated.not_exhaustive_category_ids),
    )


def checked_areas(table: AnnotationTable) -> Float64[np.ndarray, " M"]:
    """Return the areas of a table that was read for a `Truth`.

    Raises:
        DataError: F6 an area is not a number; F7 an object has a field that LVIS's evaluators disagree on.
    """
    assert table.areas_px is not None
    if isinstance(table.areas_px, DataError):
        raise table.areas_px
    return table.areas_px


def truth_of(table: AnnotationTable) -> Truth:
    """Return the table's boxes for evaluation, without cleaning them.

    LVIS has no crowds, so `iscrowd` is ignored for it. Its evaluator leaves out boxes without area; they are left out
    and counted here.

    Raises:
        DataError: as for `checked_areas`.
    """
    areas_px = checked_areas(table)
    federated = table.federated or _no_labels(len(table.image_ids))
    labels = zip(
        table.image_ids.tolist(), federated.negative_category_ids, federated.not_exhaustive_category_ids, strict=True
    )
    is_federated = table.federated is not None
    kept = areas_px > 0 if is_federated else np.ones(len(areas_px), dtype=bool)
    crowd = np.zeros_like(table.is_crowd) if is_federated else table.is_crowd
    category_ids = np.array([category.id for category in table.categories], dtype=np.int64)
    return Truth(
        path=table.path,
        is_federated=is_federated,
        images=tuple(sorted((TruthImage(*row) for row in labels), key=lambda image: image.id)),
        categories=_counted(table.categories, table, kept & ~crowd),
        image_ids=table.image_ids[table.image_of_object[kept]],
        category_ids=category_ids[table.class_of_object[kept]],
        boxes_xywh=table.boxes_xywh[kept],
        areas_px=areas_px[kept],
        crowd=crowd[kept],
        num_without_area=int((~kept).sum()),
    )


def _no_labels(num_images: int) -> FederatedLabels:
    nothing = ((),) * num_images
    return FederatedLabels(nothing, nothing)


def available_part(table: AnnotationTable, report: DataReport) -> AnnotationTable:
    """Return the table without the images that are not available; `report` counts their boxes."""
    if table.is_available is None:
        return table
    report.count_skipped_with_images(int((~table.is_available[table.image_of_object]).sum()))
    return with_images(table, table.is_available)


def with_images(table: AnnotationTable, kept: Bool[np.ndarray, " N"]) -> AnnotationTable:
    """Return the table with only the given images and their objects; it must have been read for an index."""
    assert table.image_sizes is not None
    assert table.image_files is not None
    objects = np.flatnonzero(kept[table.image_of_object])
    position = np.cumsum(kept) - 1
    images = np.flatnonzero(kept).tolist()
    federated = table.federated and FederatedLabels(
        tuple(table.federated.negative_category_ids[image] for image in images),
        tuple(table.federated.not_exhaustive_category_ids[image] for image in images),
    )
    return replace(
        table,
        image_ids=table.image_ids[kept],
        image_files=tuple(table.image_files[image] for image in images),
        image_sizes=table.image_sizes[kept],
        image_of_object=position[table.image_of_object[objects]],
        class_of_object=table.class_of_object[objects],
        boxes_xywh=table.boxes_xywh[objects],
        is_crowd=table.is_crowd[objects],
        name_of_object=lambda row: table.name_of_object(int(objects[row])),
        areas_px=table.areas_px[objects] if isinstance(table.areas_px, np.ndarray) else table.areas_px,
        is_available=None,
        federated=federated,
    )


def _counted(
    categories: tuple[Category, ...], table: AnnotationTable, selected: Bool[np.ndarray, " M"]
) -> tuple[Category, ...]:
    """Fill in the number of images with a selected object, for categories whose number the file does not state."""
    counts = images_per_class(table.image_of_object[selected], table.class_of_object[selected], len(categories))
    return tuple(
        replace(category, image_count=count) if category.image_count == UNCOUNTED else category
        for category, count in zip(categories, counts.tolist(), strict=True)
    )


def clean_boxes(
    table: AnnotationTable, sizes: Int64[np.ndarray, "M 2"], report: DataReport
) -> tuple[Float32[np.ndarray, "M 4"], Bool[np.ndarray, " M"]]:
    """Clamp boxes to their images.

    Args:
        sizes: height and width of the image of each box.
        report: counts the boxes that are used, clamped (F5) or skipped (F4, F5).

    Returns:
        The boxes as xyxy, and whether each is to be used.
    """
    # Coordinates are rows here: NumPy loops over millions of boxes many times faster than over four coordinates.
    x, y, width, height = table.boxes_xywh.T
    boxes = np.stack([x, y, x + width, y + height])
    clamped = np.clip(boxes, 0, sizes.T[[1, 0, 1, 0]].astype(np.float64))

    shorter_side_inside = np.minimum(clamped[2] - clamped[0], clamped[3] - clamped[1])
    # With the tolerance: a 1 px side may be 1e-12 px shorter, and 3e-4 px in YOLO's six decimals.
    smallest = SMALLEST_ANNOTATED_PX - table.rounding_px
    too_small = np.minimum(width, height) < smallest
    wholly_outside = ~too_small & (shorter_side_inside <= 0)
    partly_outside = ~too_small & ~wholly_outside & (np.abs(clamped - boxes).max(axis=0) > table.rounding_px)
    sliver = partly_outside & (shorter_side_inside < smallest)
    is_kept = ~(too_small | wholly_outside | sliver)

    previous = -1
    for row in np.flatnonzero(~is_kept | partly_outside).tolist():
        report.count_used(row - previous - 1, unit="box")
        previous = row
        where, box, size = table.name_of_object(row), boxes[:, row].round(2).tolist(), sizes[row].tolist()
        if too_small[row]:
            report.count_skipped("F4", f"{where}: a side of {box} is less than {SMALLEST_ANNOTATED_PX:g} px")
        elif wholly_outside[row]:
            report.count_skipped("F5", f"{where}: {box} lies outside the image of height, width {size}")
        elif sliver[row]:
            report.count_skipped(
                "F4",
                f"{where}: the part of {box} inside height, width {size} is less than {SMALLEST_ANNOTATED_PX:g} px",
            )
        else:
            report.count_repaired("F5", f"{where}: {box} is clipped to height, width {size}")
            report.count_used(unit="box")
    report.count_used(len(sizes) - previous - 1, unit="box")
    return np.ascontiguousarray(clamped.T, np.float32), is_kept
