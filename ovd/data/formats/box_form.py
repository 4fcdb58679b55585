"""Checks of all boxes of a file together: the form [x, y, width, height], the unit pixels, and duplicates."""

import os
import re

import numpy as np

from ovd.data.category import Category
from ovd.data.formats.table import AnnotationTable
from ovd.data.report import DataError, DataReport
from ovd.shapes import Bool
from ovd.text.names import name_key

FEW = 3
"""Number of boxes in all, and of boxes outside their image, up to which the form of a file is not judged."""
TOLERANCE_PX = 1.0
SHARES = (
    "all coordinates are from 0 to 1, so they are relative to the image size; multiply x and width by the image's "
    "width, y and height by its height"
)


def check_box_form(table: AnnotationTable) -> None:
    """Check that the boxes of a file are [x, y, width, height] in pixels, if image sizes are known.

    Raises:
        DataError: F5 more than `FEW` boxes leave their image as [x, y, width, height], and all boxes fit as
            [x1, y1, x2, y2]; F6 all numbers of more than `FEW` boxes lie from 0 to 1.
    """
    if table.image_sizes is None or len(table.boxes_xywh) <= FEW:
        return
    check_no_shares(table)
    boxes, limits = table.boxes_xywh, table.image_sizes[table.image_of_object][:, ::-1].astype(np.float64)
    beyond = boxes[:, :2] + boxes[:, 2:] > limits + TOLERANCE_PX
    leaves = beyond[:, 0] | beyond[:, 1]
    if leaves.sum() > FEW and _fit_as_corners(boxes, limits).all():
        raise DataError(
            "F5",
            f"{table.path}: {int(leaves.sum())} of {len(boxes)} boxes reach outside their image if read as "
            f"[x, y, width, height], but all fit as [x1, y1, x2, y2]: convert them, or set "
            f"data.source.xyxy=true (tools: --xyxy)",
        )


def check_no_shares(table: AnnotationTable) -> None:
    """Check that boxes are in pixels.

    Raises:
        DataError: F6 all numbers of more than `FEW` boxes lie from 0 to 1.
    """
    if table.image_sizes is None or len(table.boxes_xywh) <= FEW:
        return
    boxes, sides = table.boxes_xywh, table.image_sizes[table.image_of_object]
    if boxes.min() >= 0 and 0 < boxes.max() <= 1 and sides.min() > 1:
        raise DataError("F6", f"{table.path}: {SHARES}")


def _fit_as_corners(boxes: np.ndarray, limits: np.ndarray) -> Bool[np.ndarray, " M"]:
    first, last = boxes[:, :2], boxes[:, 2:]
    fits = (first >= -TOLERANCE_PX) & (last > first) & (last <= limits + TOLERANCE_PX)
    return np.all(fits, axis=1)


def notice_doubles(table: AnnotationTable, report: DataReport) -> None:
    """Count duplicate objects, images and classes.

    These are objects with the image, class and box of an earlier one, images with the file of an earlier one, and
    classes whose names are nearly the same or become the same text, or that have another class's name as a synonym.
    """
    for row in _doubles(table):
        report.count_noticed(
            "F2", f"{table.name_of_object(row)}: has the same image, class and box as an earlier one; both are used"
        )
    for row, earlier, file in _same_files(table):
        where = f"{table.path}: images {table.image_ids[earlier]} and {table.image_ids[row]}"
        report.count_noticed(
            "F2",
            f"{where} are both {file}, so the objects of one are background in the other; merge the records",
        )
    first: dict[str, Category] = {}
    for category in table.categories:
        other = first.setdefault(_without_spelling(category.name), category)
        if other is not category:
            if other.name == category.name:
                where = f"{other.id} and {category.id} are both called {other.name!r}, which training refuses"
            else:
                how, text = "differ only in case, spaces, hyphens or underscores", name_key(category.name)
                if text == name_key(other.name) and _squeezed(other.name) != _squeezed(category.name):
                    how = f"are one text for a detector, {text!r}"
                where = f"{other.name!r} and {category.name!r} {how}; training uses both"
            report.count_noticed("F2", f"{table.path}: categories {where}")
    for category in table.categories:
        for synonym in category.synonyms:
            named = first.get(_without_spelling(synonym))
            if named is not None and named is not first[_without_spelling(category.name)]:
                where = f"{category.name!r} has the synonym {synonym!r}, which is the name of {named.name!r}"
                report.count_noticed("F2", f"{table.path}: category {where}; training uses it for both")


def _without_spelling(name: str) -> str:
    """Return the key that names share if a text tower reads them alike apart from hyphens."""
    return _squeezed(name_key(name))


def _squeezed(name: str) -> str:
    """Return the key that names share if they differ at most in case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _same_files(table: AnnotationTable) -> list[tuple[int, int, str]]:
    """Return (position, position of the first image with the same file, file) of each image with a repeated file."""
    # Only such names can be other names of a file; normalizing all of a large set would take seconds.
    files = [os.path.normpath(file) if "./" in file or "//" in file else file for file in table.image_files or ()]
    if len(set(files)) == len(files):
        return []
    first: dict[str, int] = {}
    return [(row, earlier, file) for row, file in enumerate(files) if (earlier := first.setdefault(file, row)) != row]


def _doubles(table: AnnotationTable) -> list[int]:
    """Return the positions, ascending, of the objects that have the image, class and box of an earlier one."""
    columns = [table.image_of_object, table.class_of_object, *(table.boxes_xywh + 0.0).T]  # + 0.0 turns -0.0 into 0.0
    mixed = np.zeros(len(table.boxes_xywh), np.uint64)
    for column in columns:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.ascontiguousarray(column).view(np.uint64)
    ordered = np.sort(mixed)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    seen: set[tuple[float, ...]] = set()
    found = []
    for row in np.flatnonzero(np.isin(mixed, repeated)).tolist() if len(repeated) else []:
        values = tuple(column[row].item() for column in columns)
        if values in seen:
            found.append(row)
        seen.add(values)
    return found
