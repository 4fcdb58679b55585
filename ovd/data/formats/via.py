"""Reader of the JSON files of the VGG Image Annotator (VIA), versions 1 and 2."""

import math
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd.data.formats.drawn_shapes import Box, around_ellipse, around_points
from ovd.data.formats.image_names import with_slashes
from ovd.data.formats.json_object import is_number, read_json_object
from ovd.data.formats.named_objects import NamedImage, NamedObject, table_of_images
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, ReadRequest
from ovd.data.formats.text_files import read_names
from ovd.data.report import DataError, DataReport

_MAX_BYTES = 2**30
_CLOSED_UP_TO = 0.2
"""Largest distance between the ends of a polyline that counts as an outline, as a share of its extent."""
_VALUES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Region:
    attributes: Mapping[str, str]
    """Attributes that have a value."""
    box: Box
    where: str


@dataclass(frozen=True, slots=True)
class _Image:
    file: str
    regions: tuple[_Region, ...]
    where: str


def read_via(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a file of regions, such as `via_region_data.json`, or a saved project.

    Polygons, circles and ellipses become their bounding box, as do polylines whose ends meet, which are counted (F6);
    points and other polylines have no box, and are left out and counted (F4). The label is the only attribute of the
    regions, or one of several that agree everywhere; otherwise the option `attribute` names it. The option
    `class_names` is a text file with a single name, the label of regions without one. Sizes are read from the images.

    Args:
        request: `annotations` is the JSON file, `images` the folder that image names are relative to (None: the folder
            of the file).
        report: counts regions without a box, and images that cannot be read.

    Raises:
        DataError: F1 not VIA's, or a region without a label; F2 a duplicate image; F6 a region that is not finite
            numbers, or of an unknown shape.
        ValueError: the file of class names has several names.
    """
    path = request.annotations
    root = request.images or path.parent
    records = _records(path, read_json_object(path, _MAX_BYTES))
    images = [_image(path, root, key, record, report) for key, record in records.items()]
    regions = [region for image in images for region in image.regions]
    labels = _labels(path, regions, request.options.attribute, request.options.class_names)
    named = [
        NamedImage(
            image.file,
            (0, 0),
            tuple(NamedObject(next(labels), region.box, region.where) for region in image.regions),
            image.where,
        )
        for image in images
    ]
    return table_of_images(request, root, named, report)


def _records(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the record of each image."""
    records = content.get("_via_img_metadata", content)
    is_right = isinstance(records, dict) and all(
        isinstance(record, dict) and "filename" in record and "regions" in record for record in records.values()
    )
    if not is_right or not records:
        newer = ": projects of VIA 3 are not supported" if {"project", "metadata", "view"} <= content.keys() else ""
        wanted = "records of images with `filename` and `regions`, as VIA 1 and 2 write"
        raise DataError("F1", f"{path}: no {wanted}{newer}")
    return records


def _image(path: Path, root: Path, key: str, record: dict[str, Any], report: DataReport) -> _Image:
    file, regions = record["filename"], record["regions"]
    where = f"{path}: image {key!r}"
    if not isinstance(file, str) or not file.strip():
        raise DataError("F1", f"{where} has the filename {file!r}")
    if not isinstance(regions, dict | list):
        raise DataError("F1", f"{where}: its regions are a {type(regions).__name__}, not a list")
    numbered = regions.items() if isinstance(regions, dict) else enumerate(regions)  # VIA 1 writes an object
    read = (_region(region, f"{where}, region {number}", report) for number, region in numbered)
    name = posixpath.normpath(with_slashes(file.strip(), root))
    return _Image(name, tuple(region for region in read if region is not None), where)


def _region(region: Any, where: str, report: DataReport) -> _Region | None:
    """Read a region; None if it has no box."""
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        raise DataError("F1", f"{where} has no shape_attributes")
    kind = shape.get("name")
    if kind == "polyline" and _is_closed(_points(shape, where)):
        report.count_repaired("F6", f"{where}: a polyline whose ends meet is read as a polygon")
    elif kind in ("point", "polyline"):
        report.count_skipped("F4", f"{where}: a {kind} has no box")
        return None
    attributes = region.get("region_attributes") or {}
    if not isinstance(attributes, dict):
        raise DataError("F1", f"{where}: its region_attributes are a {type(attributes).__name__}, not an object")
    values = ((name, _value(value)) for name, value in attributes.items())
    return _Region({name: value for name, value in values if value}, _box(shape, where), where)


def _value(value: Any) -> str:
    """Return the value of an attribute: its text, or the names of the checked boxes, joined by commas."""
    if isinstance(value, dict):
        return ", ".join(sorted(str(name) for name, is_ticked in value.items() if is_ticked))
    return "" if value is None else str(value).strip()


def _box(shape: dict[str, Any], where: str) -> Box:
    match shape.get("name"):
        case "rect":
            left, top, width, height = _numbers(shape, where, "x", "y", "width", "height")
            return left, top, left + width, top + height
        case "circle":
            x, y, radius = _numbers(shape, where, "cx", "cy", "r")
            return around_ellipse(x, y, radius, radius)
        case "ellipse":
            x, y, radius_x, radius_y, angle = _numbers({"theta": 0} | shape, where, "cx", "cy", "rx", "ry", "theta")
            return around_ellipse(x, y, radius_x, radius_y, angle)
        case "polygon" | "polyline":
            return around_points(_points(shape, where))
    raise DataError(
        "F6",
        f"{where}: the shape is {shape.get('name')!r}; only rectangles, polygons, circles and ellipses are supported",
    )


def _is_closed(points: Sequence[tuple[float, float]]) -> bool:
    left, top, right, bottom = around_points(points)
    extent = math.hypot(right - left, bottom - top)
    return len(points) > 2 and math.dist(points[0], points[-1]) <= _CLOSED_UP_TO * extent


def _points(shape: dict[str, Any], where: str) -> list[tuple[float, float]]:
    columns = [shape.get(f"all_points_{axis}") for axis in "xy"]
    x, y = (column if isinstance(column, list) and all(map(_is_number, column)) else [] for column in columns)
    if len(x) != len(y) or len(x) < (3 if shape["name"] == "polygon" else 1):
        raise DataError("F6", f"{where}: points are {str(columns)[:80]}, not those of a {shape['name']}")
    return list(zip(x, y, strict=True))


def _numbers(shape: dict[str, Any], where: str, *names: str) -> list[float]:
    found: dict[str, Any] = {name: shape.get(name) for name in names}
    if not all(map(_is_number, found.values())):
        raise DataError("F6", f"{where}: has {str(found)[:200]}, not numbers under {LARGEST_COORDINATE:,.0f}")
    return list(found.values())


def _is_number(value: Any) -> bool:
    return is_number(value, LARGEST_COORDINATE)


def _labels(path: Path, regions: Sequence[_Region], attribute: str | None, class_names: Path | None) -> Iterator[str]:
    """Yield the label of each region."""
    names = [] if class_names is None else read_names(class_names)
    if len(names) > 1:
        raise ValueError(f"{class_names} has {len(names)} names; regions without a class name can have only one")
    if attribute is not None or any(region.attributes for region in regions):
        attribute = _attribute_that_names(path, regions, attribute)
    for region in regions:
        label = region.attributes.get(attribute or "", names[0] if names else "")
        if not label:
            lacks = "no attribute" if attribute is None else f"no {attribute!r}"
            hint = "if they all have one class, give its name in a text file (--class-names)"
            raise DataError("F1", f"{region.where}: has {lacks} with a class name; {hint}")
        yield label


def _attribute_that_names(path: Path, regions: Sequence[_Region], wanted: str | None) -> str:
    values: dict[str, Counter[str]] = {}
    for region in regions:
        for name, value in region.attributes.items():
            values.setdefault(name, Counter())[value] += 1
    usual = max(values, key=lambda name: values[name].total(), default="")
    agree = all(len(set(region.attributes.values())) <= 1 for region in regions)
    is_in_all = all(usual in region.attributes for region in regions if region.attributes)
    if wanted is None and (len(values) == 1 or (agree and is_in_all)):
        return usual
    if wanted in values:
        return wanted
    listed = "; ".join(
        f"{name} ({', '.join(value for value, _ in counts.most_common(_VALUES_SHOWN))})"
        for name, counts in values.items()
    )
    said = "say with --attribute which one is the class name" if wanted is None else f"none is called {wanted!r}"
    raise DataError("F1", f"{path}: regions have several attributes, {listed}: {said}")
