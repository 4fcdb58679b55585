"""Reader of a CSV file with one box per row, as tools for TensorFlow, Roboflow and RetinaNet write it."""

import math
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovd.data.formats.box_form import check_no_shares
from ovd.data.formats.csv_lines import csv_lines
from ovd.data.formats.image_names import with_slashes
from ovd.data.formats.named_objects import NamedImage, NamedObject, table_of_images
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, ReadRequest
from ovd.data.formats.text_files import finite_numbers, whole_number
from ovd.data.images.files import find_images
from ovd.data.report import DataError, DataReport
from ovd.format_count import format_count

_NAMES_OF_COLUMNS = {
    "file": ("filename", "file", "image", "imagename", "imagepath", "filepath", "path"),
    "label": ("class", "label", "classname", "name", "category"),
    "left": ("xmin", "x1", "left"),
    "top": ("ymin", "y1", "top"),
    "right": ("xmax", "x2", "right"),
    "bottom": ("ymax", "y2", "bottom"),
}
"""Accepted names of each column, in lower case without spaces and underscores."""
_SIDES = ("left", "top", "right", "bottom")
_RETINANET = ("file", *_SIDES, "label")
"""Columns of a file without a header."""


@dataclass(frozen=True, slots=True)
class _Row:
    file: str
    size: tuple[int, int]
    object: NamedObject | None
    """Object of the row; None in the row of an image without objects."""


def read_box_csv(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a CSV file with columns such as `filename,width,height,class,xmin,ymin,xmax,ymax`, in any order.

    `width` and `height` are those of the image, and may be missing. Corners are box edges in pixels, counted from 0. A
    file without a header has RetinaNet's columns: `path,x1,y1,x2,y2,class`. A row without corners and class is an image
    without objects; images in the folder without a row are left out, and counted in one line (F8).

    Args:
        request: `annotations` is the CSV file, `images` the folder that image names are relative to (None: the folder
            of the file).

    Raises:
        DataError: F1 a missing column, or a row of another length; F6 a box that is not four finite numbers, or boxes
            from 0 to 1.
    """
    path = request.annotations
    root = request.images or path.parent
    sizes: dict[str, tuple[int, int]] = {}
    objects: dict[str, list[NamedObject]] = defaultdict(list)
    for row in _rows(path, root):
        if sizes.setdefault(row.file, row.size) != row.size:
            sizes[row.file] = (0, 0)  # rows disagree: the size is read from the image
        objects[row.file] += [] if row.object is None else [row.object]
    if not sizes:
        raise DataError("F1", f"{path}: has no row with an image")
    images = [NamedImage(file, size, tuple(objects[file]), f"{path}: {file}") for file, size in sizes.items()]
    table = table_of_images(request, root, images, report)
    check_no_shares(table)
    _notice_without_row(table, root, report)
    return table


def _rows(path: Path, root: Path) -> Iterator[_Row]:
    columns: dict[str, int] | None = None
    num_columns = 0
    for number, values in csv_lines(path, strict=True):
        if not any(value.strip() for value in values):
            continue
        if columns is None:
            num_columns = len(values)
            columns = _columns(path, values)
            if columns is not None:
                continue
            columns = {name: place for place, name in enumerate(_RETINANET)}
        if len(values) != num_columns:
            raise DataError("F1", f"{path}: line {number} has {format_count(len(values), 'value')}, not {num_columns}")
        yield _row({name: values[place].strip() for name, place in columns.items()}, root, f"{path}: line {number}")


def _columns(path: Path, header: list[str]) -> dict[str, int] | None:
    """Return the position of each column; None if the line is not a header but the first row of RetinaNet's columns."""
    words = [word.strip().lower().replace("_", "").replace(" ", "") for word in header]
    columns = {
        column: words.index(name)
        for column, names in _NAMES_OF_COLUMNS.items()
        for name in reversed(names)
        if name in words
    }
    missing = [column for column in _NAMES_OF_COLUMNS if column not in columns]
    if not missing:
        return columns | {side: words.index(side) for side in ("width", "height") if side in words}
    corners = finite_numbers((value or "0" for value in header[1:5]), math.inf)
    if len(header) == len(_RETINANET) and corners is not None:
        return None
    asked = "; ".join(f"{column}: {', '.join(_NAMES_OF_COLUMNS[column])}" for column in missing)
    raise DataError("F1", f"{path}: the first line, {header}, has no column for these: {asked}")


def _row(values: dict[str, str], root: Path, where: str) -> _Row:
    if not values["file"]:
        raise DataError("F1", f"{where}: has no image name")
    file = posixpath.normpath(with_slashes(values["file"], root))
    height, width = (whole_number(values.get(side) or "0", LARGEST_COORDINATE) for side in ("height", "width"))
    if height is None or width is None:
        raise DataError("F1", f"{where}: height and width are not numbers of pixels")
    if not any(values[name] for name in (*_SIDES, "label")):
        return _Row(file, (height, width), None)
    texts = [values[side] for side in _SIDES]
    corners = finite_numbers(texts, LARGEST_COORDINATE)
    if corners is None:
        raise DataError("F6", f"{where}: {texts} are not four numbers under {LARGEST_COORDINATE:,.0f}")
    left, top, right, bottom = corners
    if not values["label"]:
        raise DataError("F1", f"{where}: the class has no name")
    return _Row(file, (height, width), NamedObject(values["label"], (left, top, right, bottom), where))


def _notice_without_row(table: AnnotationTable, root: Path, report: DataReport) -> None:
    named = {os.path.normpath(root / file) for file in table.image_files or ()}
    below = find_images(root)
    without = [image for image in below if os.path.normpath(image) not in named]
    if without:
        where = (
            f"{len(without):,} of {format_count(len(below), 'image')} in {root} without a row left out; the first is"
        )
        report.count_noticed("F8", f"{table.path}: {where} {without[0].relative_to(root)}")
