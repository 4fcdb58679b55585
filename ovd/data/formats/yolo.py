"""Reader of YOLO text labels: one text file per image, whose rows are boxes or polygons."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ovd.data.category import Category
from ovd.data.formats.box_form import notice_doubles
from ovd.data.formats.table import LARGEST_COORDINATE, ROUNDING_PX, AnnotationTable, ReadRequest
from ovd.data.formats.text_files import finite_number, finite_numbers, read_lines
from ovd.data.formats.yolo_listing import Listing, list_images
from ovd.data.images.files import find_files, is_image_name, readable_sizes
from ovd.data.report import DataError, DataReport
from ovd.format_count import format_count
from ovd.join_first import join_first

_NUM_NAMED = 20

# Fractions of an image's sides lie in 0..1, or a little outside if an object is cut off. Pixels are far above.
_LARGEST_FRACTION = 2.0

# Six decimals are usual: an edge, made of a rounded center and half a rounded side, is wrong by 0.75e-6 at most.
_ROUNDING_FRACTION = 1e-6

_BOX_NUMBERS, _CONFIDENCE_NUMBERS, _SMALLEST_POLYGON_NUMBERS = 4, 5, 6


@dataclass(frozen=True)
class _Row:
    """One object: its class id, its box as center and sides in fractions of the image's sides, and its line."""

    class_id: int
    box: tuple[float, float, float, float]
    path: Path
    line: int


def read_yolo(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a data set in YOLO's format.

    Image ids are positions in the order of the images, from 0; category ids are the ids of `names`. An image whose
    label file is missing or empty has no objects. A row is `class cx cy w h`, in fractions of the image's sides as a
    viewer shows it, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, which becomes its bounding box.

    Args:
        request: `annotations` is a data.yaml with `names` and, for the split, an image folder, a .txt file that lists
            images, or several of them; or a .data file of Darknet; or a folder with one of these; or a folder with
            classes.txt and the label files, directly or in a subfolder `labels`. `images` is the folder that paths are
            relative to (None: the `path` of data.yaml, else its folder), or the image folder for a folder of labels
            (None: its subfolder `images`, else the folder itself).
        report: counts images that are left out, since they cannot be read (label files state no size), label files
            without an image and paths of another machine (F8), and label files of two images (F2); reports once how
            many images have no label file (F1).

    Raises:
        DataError: F1 no plain YAML, a missing key or folder, or no label file at all; F2 a duplicate image; F3 a class
            id that is not in `names`; F6 a row that is neither a box nor a polygon; F8, F9, F10 for evaluation, an
            image that cannot be read.
    """
    annotations, listing = request.annotations, list_images(request, report)
    _check_listing(annotations, listing)
    _notice_odd_labels(listing, report)

    kept, sizes = readable_sizes(listing.images, report, stops=request.is_for_evaluation)
    _notice_unlabeled(annotations, listing, kept.tolist(), report)
    rows_of_image = [_read_labels(listing.labels[image]) for image in kept.tolist()]
    image_of_object = np.repeat(np.arange(len(kept)), [len(rows) for rows in rows_of_image]).astype(np.int64)
    rows = [row for of_image in rows_of_image for row in of_image]
    unread = set(range(len(listing.images))) - set(kept.tolist())
    report.count_skipped_with_images(sum(len(_read_labels(listing.labels[image])) for image in unread))
    _refuse_unknown_classes(annotations, rows, listing.names)
    fractions = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    boxes = np.concatenate([fractions[:, :2] - fractions[:, 2:] / 2, fractions[:, 2:]], axis=1)
    boxes *= sizes[image_of_object][:, [1, 0, 1, 0]]
    class_ids = sorted(listing.names)
    row_of_class = {class_id: row for row, class_id in enumerate(class_ids)}
    table = AnnotationTable(
        path=annotations,
        categories=tuple(Category(class_id, listing.names[class_id]) for class_id in class_ids),
        image_ids=kept,
        image_of_object=image_of_object,
        class_of_object=np.array([row_of_class[row.class_id] for row in rows], dtype=np.int64),
        boxes_xywh=boxes,
        is_crowd=np.zeros(len(rows), dtype=bool),
        name_of_object=lambda row: f"{rows[row].path}: line {rows[row].line}",
        areas_px=boxes[:, 2:].prod(axis=1),
        images_root=listing.root,
        image_files=tuple(_below(listing.images[image], listing.root) for image in kept.tolist()),
        image_sizes=sizes,
        rounding_px=max(ROUNDING_PX, _ROUNDING_FRACTION * int(sizes.max(initial=0))),
    )
    notice_doubles(table, report)
    return table


def _check_listing(path: Path, listing: Listing) -> None:
    first: dict[Path, int] = {}
    for position, image in enumerate(listing.images):
        same = Path(os.path.normpath(image))
        if first.setdefault(same, position) != position:
            raise DataError("F2", f"{path}: images {first[same]} and {position} are both {image}; remove one of them")
    if not listing.images:
        raise DataError("F1", f"{path}: no image in {listing.root}")
    if not any(listing.labels):
        if not any(map(os.path.exists, listing.images)):
            where = f"none of {format_count(len(listing.images), 'image')} found; the first is {listing.images[0]}"
            raise DataError("F8", f"{path}: {where}")
        raise DataError(
            "F1",
            f"{path}: none of {format_count(len(listing.images), 'image')} has a label file; these must be in a folder "
            f"`labels` beside `images`, or beside the images; the first image is {listing.images[0]}",
        )


def _notice_odd_labels(listing: Listing, report: DataReport) -> None:
    """Count label files that two images share, such as a.jpg and a.png, and those beside them whose image is missing.

    An image that is in its folder without being listed does not count as missing.
    """
    image_of_label: dict[Path, Path] = {}
    image_folders: dict[Path, set[Path]] = {}
    for image, label in zip(listing.images, listing.labels, strict=True):
        if label is None:
            continue
        first = image_of_label.setdefault(label, image)
        if first is not image:
            report.count_noticed(
                "F2", f"{label}: is the label file of {first} and of {image}; its objects are used for both"
            )
        image_folders.setdefault(label.parent, set()).add(image.parent)
    for folder, folders in image_folders.items():
        stems = set[str]().union(*map(_image_stems, folders))
        orphans = [path for path in folder.glob("*.txt") if path.stem not in stems and path not in image_of_label]
        for path in sorted(orphans):
            _notice_orphan(path, folders, report)
    stems_in = cache(_image_stems)
    for images, labels in listing.folders:
        for path in sorted(find_files(labels, lambda name: name.endswith(".txt"))):
            images_folder = images / path.relative_to(labels).parent
            if path.parent not in image_folders and path.stem not in stems_in(images_folder):
                _notice_orphan(path, {images_folder}, report)


def _image_stems(folder: Path) -> set[str]:
    """Return the names without suffix of the images in a folder; empty if there is no such folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {os.path.splitext(name)[0] for name in filter(is_image_name, names)}


def _notice_unlabeled(path: Path, listing: Listing, kept: Sequence[int], report: DataReport) -> None:
    """Report how many readable images have no label file: they are background, or their labels were lost."""
    without = [listing.images[image] for image in kept if listing.labels[image] is None]
    if without:
        where = (
            f"{len(without):,} of {format_count(len(kept), 'image')} have no label file and count as without objects"
        )
        report.count_noticed("F1", f"{path}: {where}; the first: {without[0]}")


def _notice_orphan(path: Path, folders: Collection[Path], report: DataReport) -> None:
    """Count a label file whose image is in none of the folders."""
    if num_rows := _num_rows(path):
        places = " or ".join(str(each) for each in sorted(folders))
        report.count_noticed("F8", f"{path}: its image is not in {places}; {format_count(num_rows, 'object')} left out")


def _num_rows(path: Path) -> int:
    """Return the number of objects in a label file; 0 for other text files, such as classes.txt and lists of images."""
    try:
        return len(_read_labels(path))
    except DataError:
        return 0


def _read_labels(path: Path | None) -> list[_Row]:
    return [] if path is None else [_row(path, number, line) for number, line in read_lines(path)]


def _row(path: Path, number: int, line: str) -> _Row:
    first, *texts = line.split()
    where = f"{path}: line {number}"
    class_id = finite_number(first, LARGEST_COORDINATE)
    if class_id is None or class_id != int(class_id):
        raise DataError("F6", f"{where}: the class is {first!r}, not a whole number")
    numbers = finite_numbers(texts, LARGEST_COORDINATE)
    if numbers is None:
        bad = next(text for text in texts if finite_number(text, LARGEST_COORDINATE) is None)
        raise DataError("F6", f"{where}: {bad!r} is not a finite number")
    if any(abs(value) > _LARGEST_FRACTION for value in numbers):
        raise DataError("F6", f"{where}: {numbers} must be fractions of the image's sides, from 0 to 1, not pixels")
    return _Row(int(class_id), _box(numbers, where), path, number)


def _box(numbers: list[float], where: str) -> tuple[float, float, float, float]:
    """Return center and sides of a box, or of the bounding box of a polygon."""
    if len(numbers) == _BOX_NUMBERS:
        center_x, center_y, width, height = numbers
        return center_x, center_y, width, height
    if len(numbers) < _SMALLEST_POLYGON_NUMBERS or len(numbers) % 2:
        hint = "; if the last one is a confidence, remove it" if len(numbers) == _CONFIDENCE_NUMBERS else ""
        raise DataError(
            "F6",
            f"{where}: {format_count(len(numbers), 'number')} after the class; a box has 4, a polygon 6, 8 "
            f"or more{hint}",
        )
    x, y = numbers[::2], numbers[1::2]
    return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)


def _refuse_unknown_classes(path: Path, rows: Sequence[_Row], names: Mapping[int, str]) -> None:
    unknown = [f"{row.path}: line {row.line} has class {row.class_id}" for row in rows if row.class_id not in names]
    if unknown:
        named = join_first(unknown, _NUM_NAMED, separator="; ")
        raise DataError("F3", f"{path}: {format_count(len(unknown), 'object')} of classes without a name: {named}")


def _below(path: Path, root: Path) -> str:
    """Return a path relative to `root` if it lies below it, else absolute."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else os.path.abspath(path)
