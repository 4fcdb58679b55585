"""Reader of the files of LabelMe and X-AnyLabeling: one JSON file per image, beside it or in a separate folder."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovd.data.formats.drawn_shapes import around_ellipse, around_points
from ovd.data.formats.image_names import with_slashes
from ovd.data.formats.json_object import is_number, read_json_object
from ovd.data.formats.named_objects import NamedImage, NamedObject, table_of_images
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, ReadRequest
from ovd.data.images.files import exclude_drawn, find_files
from ovd.data.report import DataError, DataReport

_NUM_POINTS = {"rectangle": (2, 4), "mask": (2,), "circle": (2,), "rotation": (4,)}
"""Number of points of shapes other than polygons: two corners, center and border, or four corners, as X-AnyLabeling
writes rectangles, upright or rotated."""
_WITHOUT_BOX = ("point", "points", "line", "linestrip")


@dataclass(frozen=True)
class _Shape:
    object: NamedObject
    group: str | None
    """Group id that the parts of one object share, as they do their label; None for an object of one part."""


def read_labelme(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a folder of LabelMe's files, in the order of their names.

    Rectangles are read as they are; polygons, circles and masks become their bounding box; points, lines and polygons
    of one or two points have no box, and are left out and counted (F4). Shapes of one file with the same label and
    `group_id` are parts of one object, as in labelme2coco: they get one box around all, and are counted (F2). Image ids
    and category ids are positions from 0; classes are sorted.

    Args:
        request: `annotations` is the folder of JSON files, except those of `ovd detect` (`exclude_drawn`); `images` is
            the image folder (None: the same folder). `imagePath` is relative to the JSON file or, with the option
            `by_base_name`, searched below the image folder.
        report: counts shapes without a box, objects of several shapes, and images without a stated size that cannot be
            read.

    Raises:
        DataError: F1 no folder, no JSON files in it, or one that is not LabelMe's; F2 a duplicate image; F6 a shape
            that is not finite points, or of an unknown type.
    """
    paths = exclude_drawn(sorted(find_files(request.annotations, _is_annotation)))
    if not paths:
        is_folder = request.annotations.is_dir()
        reason = (
            "no .json file in this folder" if is_folder else "this is not a folder; give the folder of the .json files"
        )
        raise DataError("F1", f"{request.annotations}: {reason}")
    root = request.images or request.annotations
    return table_of_images(request, root, [_read_image(path, root, report) for path in paths], report)


def _is_annotation(name: str) -> bool:
    return name.lower().endswith(".json") and not name.startswith(".")


def _read_image(path: Path, root: Path, report: DataReport) -> NamedImage:
    content = read_json_object(path)
    image_path, shapes = content.get("imagePath"), content.get("shapes")
    if not isinstance(image_path, str) or not image_path.strip() or not isinstance(shapes, list):
        raise DataError("F1", f"{path}: imagePath or the list of shapes is missing; is this a LabelMe file?")
    file = os.path.normpath(path.parent / with_slashes(image_path.strip(), path.parent))
    sides = [content.get(key) for key in ("imageHeight", "imageWidth")]
    if not all(side is None or (type(side) is int and 0 < side < LARGEST_COORDINATE) for side in sides):
        raise DataError("F1", f"{path}: imageHeight and imageWidth are {sides}, not numbers of pixels")
    read = [_read_shape(shape, f"{path}: shape {number}", report) for number, shape in enumerate(shapes, start=1)]
    return NamedImage(
        os.path.relpath(file, os.path.normpath(root)),
        (sides[0] or 0, sides[1] or 0),
        _united([shape for shape in read if shape is not None], report),
        str(path),
    )


def _united(shapes: Sequence[_Shape], report: DataReport) -> tuple[NamedObject, ...]:
    """Return the objects of an image; shapes with the same label and group become one, in the place of the first."""
    objects: dict[object, list[_Shape]] = {}
    for number, shape in enumerate(shapes):
        key = number if shape.group is None else (shape.object.label, shape.group)
        objects.setdefault(key, []).append(shape)
    return tuple(_whole(parts, report) for parts in objects.values())


def _whole(parts: Sequence[_Shape], report: DataReport) -> NamedObject:
    """Return one object whose box is around all parts."""
    first = parts[0].object
    if len(parts) == 1:
        return first
    where = f"{first.where}: {len(parts)} shapes are called {first.label!r} and have the group_id {parts[0].group}"
    report.count_noticed("F2", f"{where}; they are read as one object, with a box around all parts")
    corners = [corner for part in parts for corner in (part.object.box[:2], part.object.box[2:])]
    return replace(first, box=around_points(corners))


def _read_shape(shape: Any, where: str, report: DataReport) -> _Shape | None:
    """Read a shape; None if it has no box."""
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise DataError("F1", f"{where}: its label is {label!r}, not a name")
    kind, points = shape.get("shape_type", "polygon"), _points(shape.get("points"))
    if kind in _WITHOUT_BOX:
        report.count_skipped("F4", f"{where}: a {kind} has no box")
        return None
    if kind == "polygon" and points is not None and len(points) < 3:
        report.count_skipped("F4", f"{where}: a polygon needs three points, not {len(points)}")
        return None
    if kind not in (*_NUM_POINTS, "polygon"):
        raise DataError(
            "F6", f"{where}: shape_type is {kind!r}; only rectangles, polygons, circles and masks are supported"
        )
    is_right = points is not None and (kind == "polygon" or len(points) in _NUM_POINTS[kind])
    if points is None or not is_right:
        raise DataError("F6", f"{where}: points are {str(shape.get('points'))[:80]}, not those of a {kind}")
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        box = around_ellipse(*points[0], radius, radius)
    else:
        box = around_points(points)
    group = shape.get("group_id")
    return _Shape(NamedObject(label.strip(), box, where), None if group is None else repr(group))


def _points(value: Any) -> list[tuple[float, float]] | None:
    """Return points (x, y); None if there are none, or they are not finite numbers."""
    points = []
    for row in value if isinstance(value, list) else ():
        if not (
            isinstance(row, list) and len(row) == 2 and all(is_number(number, LARGEST_COORDINATE) for number in row)
        ):
            return None
        points.append((row[0], row[1]))
    return points or None
