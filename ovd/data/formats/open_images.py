"""Reader of the boxes of Open Images: a CSV file with the boxes of all images, and one with class names."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd.data.box_arrays import to_xywh
from ovd.data.category import Category
from ovd.data.formats.csv_lines import csv_lines
from ovd.data.formats.drawn_shapes import Box
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.formats.text_files import finite_numbers
from ovd.data.images.files import find_images, readable_sizes
from ovd.data.report import DataError, DataReport
from ovd.format_count import format_count

_SIDES = ("XMin", "YMin", "XMax", "YMax")
_COLUMNS = ("ImageID", "LabelName", *_SIDES)


@dataclass(frozen=True, slots=True)  # there are millions
class _Row:
    image: str
    label: str
    box: Box
    """Box as xyxy, in fractions of the image's sides."""
    is_group: bool
    line: int


def read_open_images(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a CSV file of boxes, such as `train-annotations-bbox.csv`.

    Image ids are positions in the order of their first box, from 0; category ids are positions in the file of class
    names. A box with `IsGroupOf` is a crowd region. Only images in the folder are read, since most people have a part
    of the data set; the others are counted in one line (F8).

    Args:
        request: `annotations` is the CSV file, `images` the folder with `ImageID.jpg`, directly or in subfolders;
            the option `class_names` is the CSV file `class-descriptions-boxable.csv`.

    Raises:
        DataError: F1 a missing column, or no class names; F2 two files of one image, or two names of one label; F3 a
            label without a name; F6 a box that is not four fractions; F8 none of the images is in the folder.
        ValueError: the image folder or the file of class names is missing.
    """
    path = request.annotations
    if request.images is None or request.options.class_names is None:
        raise ValueError(
            f"{path}: give the folder of the images (--images) and the CSV file of class names (--class-names)"
        )
    names = _class_names(request.options.class_names)
    files = _files_by_stem(request.images)
    rows = _rows_of_files(request, names, files, report)
    wanted = list(dict.fromkeys(row.image for row in rows))
    kept, sizes = readable_sizes([files[image][0] for image in wanted], report, stops=request.is_for_evaluation)
    position = {wanted[image]: row for row, image in enumerate(kept.tolist())}
    num_rows = len(rows)
    rows = [row for row in rows if row.image in position]
    report.count_skipped_with_images(num_rows - len(rows))
    image_of_object = np.array([position[row.image] for row in rows], np.int64)
    boxes = np.array([row.box for row in rows], np.float64).reshape(-1, 4) * sizes[image_of_object][:, [1, 0, 1, 0]]
    boxes_xywh = to_xywh(boxes)
    row_of_label = {label: number for number, label in enumerate(names)}
    return AnnotationTable(
        path=path,
        categories=tuple(Category(number, name) for number, name in enumerate(names.values())),
        image_ids=kept,
        image_of_object=image_of_object,
        class_of_object=np.array([row_of_label[row.label] for row in rows], np.int64),
        boxes_xywh=boxes_xywh,
        is_crowd=np.array([row.is_group for row in rows], dtype=bool),
        name_of_object=lambda row: f"{path}: line {rows[row].line}",
        areas_px=boxes_xywh[:, 2:].prod(axis=1),
        images_root=request.images,
        image_files=tuple(files[wanted[image]][0].relative_to(request.images).as_posix() for image in kept.tolist()),
        image_sizes=sizes,
    )


def _rows_of_files(
    request: ReadRequest, names: Mapping[str, str], files: Mapping[str, Sequence[Path]], report: DataReport
) -> list[_Row]:
    """Return the boxes of the images in the folder; `report` counts the other images.

    Args:
        names: class name by label.
        files: image files of the folder by stem.
    """
    path = request.annotations
    rows, absent = [], set()
    for row in _rows(path):
        if row.label not in names:
            source = request.options.class_names
            raise DataError("F3", f"{path}: line {row.line} has the label {row.label!r}, which has no name in {source}")
        if row.image not in files:
            absent.add(row.image)
            continue
        if len(files[row.image]) > 1:
            both = " or ".join(map(str, files[row.image][:2]))
            raise DataError("F2", f"{path}: image {row.image} may be {both}; remove one of them")
        rows.append(row)
    if not rows:
        raise DataError("F8", f"{path}: none of {format_count(len(absent), 'image')} found in {request.images}")
    if absent:
        num_images = len(absent) + len({row.image for row in rows})
        where = f"{len(absent):,} of {format_count(num_images, 'image')} left out, since not found in {request.images}"
        report.count_repaired("F8", f"{path}: {where}")
    return rows


def _files_by_stem(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for image in find_images(folder):
        files.setdefault(image.stem, []).append(image)
    return files


def _rows(path: Path) -> Iterator[_Row]:
    lines = csv_lines(path, strict=True)
    _, header = next(lines, (1, list[str]()))
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise DataError("F1", f"{path}: the first line has no column {', '.join(missing)}; is this a file of boxes?")
    places = {column: header.index(column) for column in (*_COLUMNS, *({"IsGroupOf"} & set(header)))}
    for number, values in lines:
        if not values:
            continue
        if len(values) != len(header):
            raise DataError("F1", f"{path}: line {number} has {format_count(len(values), 'value')}, not {len(header)}")
        texts = [values[places[side]] for side in _SIDES]
        box = _box(texts)
        if box is None:
            raise DataError(
                "F6",
                f"{path}: line {number}: {dict(zip(_SIDES, texts, strict=True))} is not a box from 0 to 1",
            )
        is_group = "IsGroupOf" in places and values[places["IsGroupOf"]].strip() == "1"
        yield _Row(values[places["ImageID"]], values[places["LabelName"]], box, is_group, number)


def _box(texts: Sequence[str]) -> Box | None:
    """Parse the sides of a box; None if they are not a box from 0 to 1."""
    numbers = finite_numbers(texts, math.inf)
    if numbers is None:
        return None
    left, top, right, bottom = numbers
    is_box = 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1
    return (left, top, right, bottom) if is_box else None


def _class_names(path: Path) -> dict[str, str]:
    """Read class names by label; the file may have a header."""
    names: dict[str, str] = {}
    for number, values in csv_lines(path, strict=False):
        if not values or (number == 1 and values[0] == "LabelName"):
            continue
        if len(values) != 2 or not values[1].strip():
            raise DataError("F1", f"{path}: line {number} is not a label and a name")
        if names.setdefault(values[0], values[1].strip()) != values[1].strip():
            raise DataError("F2", f"{path}: line {number}: {values[0]} has two names")
    if not names:
        raise DataError("F1", f"{path}: no class name in this file")
    return names
