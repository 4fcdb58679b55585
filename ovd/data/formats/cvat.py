"""Reader of CVAT's own XML format: shapes in the images of a task, and tracks through the frames of a video."""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from ovd.data.formats.drawn_shapes import Box, around_ellipse, around_points, around_turned_box
from ovd.data.formats.named_objects import NamedImage, NamedObject, table_of_images
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, ReadRequest
from ovd.data.formats.text_files import finite_number, finite_numbers, refuse_folder, whole_number
from ovd.data.formats.xml_tree import read_xml
from ovd.data.images.files import find_images
from ovd.data.report import DataError, DataReport

_MAX_XML_BYTES = 2**30
_WITHOUT_BOX = ("points", "polyline", "tag", "skeleton")


def read_cvat(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a file of "CVAT for images 1.1" or "CVAT for video 1.1".

    Upright boxes are read as they are; rotated boxes, polygons, ellipses and masks become their bounding box; points,
    lines, skeletons and tags have no box, and are left out and counted (F4). The frames of a video are the images in
    the folder called `frame_000012` or `000012`. A track has no object in frames where it is outside the picture, and
    frames without a track are images without objects.

    Args:
        request: `annotations` is the XML file, `images` the folder that image names are relative to.
        report: counts shapes without a box.

    Raises:
        DataError: F1 a folder, invalid XML or not CVAT's, or videos of several tasks; F2 a duplicate image; F6 a
            shape that is not finite numbers, or of an unknown type; F8 a frame without an image.
        ValueError: the image folder is missing.
    """
    path = request.annotations
    refuse_folder(path, "CVAT's XML file", ".xml")
    if request.images is None:
        raise ValueError(f"{path}: give the folder of the images (--images), which a CVAT file does not contain")
    root = read_xml(path, _MAX_XML_BYTES)
    if root.tag != "annotations" or root.find("meta") is None:
        raise DataError("F1", f"{path}: the root element is <{root.tag}>, not CVAT's <annotations> with a <meta>")
    images = [_image(path, element, report) for element in root.iterfind("image")]
    images += _frames(path, root, request.images, report)
    return table_of_images(request, request.images, images, report)


def _image(path: Path, element: Element, report: DataReport) -> NamedImage:
    name = (element.get("name") or "").strip()
    where = f"{path}: image {element.get('id')}"
    if not name:
        raise DataError("F1", f"{where} has no name")
    objects = (_object(shape, f"{where}, {name}", report) for shape in element)
    return NamedImage(name, _size(element, where), tuple(item for item in objects if item is not None), where)


def _size(element: Element, where: str) -> tuple[int, int]:
    height, width = (whole_number(element.get(side, "0"), LARGEST_COORDINATE) for side in ("height", "width"))
    if height is None or width is None:
        stated = f"{element.get('height')} and {element.get('width')}"
        raise DataError("F1", f"{where}: height and width are {stated}, not numbers of pixels")
    return height, width


def _frames(path: Path, root: Element, folder: Path, report: DataReport) -> Iterator[NamedImage]:
    """Yield the frames of a video: the numbered images of the folder, with the objects of the tracks."""
    objects: dict[int, list[NamedObject]] = defaultdict(list)
    tasks: dict[str | None, str] = {}
    for track in root.iterfind("track"):
        where = f"{path}: track {track.get('id')}"
        tasks.setdefault(track.get("task_id"), where)
        if len(tasks) > 1:
            first, second = tasks.values()
            raise DataError(
                "F1", f"{first} and {second} belong to two tasks, each with a frame 0; export each task separately"
            )
        for shape in track:
            frame = whole_number(shape.get("frame"), LARGEST_COORDINATE)
            if frame is None:
                raise DataError("F1", f"{where}: <{shape.tag}> has the frame {shape.get('frame')!r}, not a number")
            if shape.get("outside") == "1":
                continue
            item = _object(shape, f"{where}, frame {frame}", report, label=track.get("label"))
            if item is not None:
                objects[frame].append(item)
    if not tasks:
        return
    files: dict[int, str] = {}
    for image in find_images(folder):
        number = image.stem.removeprefix("frame_")
        if number.isdecimal():
            name = image.relative_to(folder).as_posix()
            if (first_name := files.setdefault(int(number), name)) != name:
                raise DataError("F2", f"{path}: frame {int(number)} may be {first_name} or {name}, both in {folder}")
    missing = [frame for frame in sorted(objects) if frame not in files]
    if missing:
        raise DataError(
            "F8", f"{path}: {folder} has no image of frame {missing[0]}, such as frame_{missing[0]:06d}.jpg"
        )
    for frame, name in sorted(files.items()):
        yield NamedImage(name, (0, 0), tuple(objects[frame]), f"{path}: frame {frame}")


def _object(shape: Element, where: str, report: DataReport, label: str | None = None) -> NamedObject | None:
    """Return the object of a shape; None if the shape has no box."""
    where = f"{where}: <{shape.tag}>"
    label = (label or shape.get("label") or "").strip()
    if shape.tag in _WITHOUT_BOX:
        report.count_skipped("F4", f"{where} {label!r} has no box")
        return None
    if not label:
        raise DataError("F1", f"{where} has no label")
    return NamedObject(label, _box(shape, f"{where} {label!r}"), where)


def _box(shape: Element, where: str) -> Box:
    match shape.tag:
        case "box":
            return around_turned_box(_numbers(shape, where, "xtl", "ytl", "xbr", "ybr"), _angle(shape, where))
        case "ellipse":
            x, y, radius_x, radius_y = _numbers(shape, where, "cx", "cy", "rx", "ry")
            return around_ellipse(x, y, radius_x, radius_y, _angle(shape, where))
        case "mask":
            left, top, width, height = _numbers(shape, where, "left", "top", "width", "height")
            return left, top, left + width, top + height
        case "polygon":
            return _around(shape, where)
    raise DataError("F6", f"{where}: only boxes, polygons, ellipses and masks are supported")


def _around(shape: Element, where: str) -> Box:
    """Return the bounding box of a polygon's `points`, such as "1.5,2;3,4;5,6"."""
    pairs = [point.split(",") for point in (shape.get("points") or "").split(";")]
    numbers = [finite_numbers(pair, LARGEST_COORDINATE) for pair in pairs]
    points = [(pair[0], pair[1]) for pair in numbers if pair is not None and len(pair) == 2]
    if len(points) < len(pairs) or len(points) < 3:
        raise DataError("F6", f"{where}: points are {(shape.get('points') or '')[:80]!r}, not those of a polygon")
    return around_points(points)


def _numbers(shape: Element, where: str, *names: str) -> tuple[float, float, float, float]:
    texts = {name: shape.get(name) for name in names}
    found = finite_numbers(texts.values(), LARGEST_COORDINATE)
    if found is None:
        raise DataError("F6", f"{where}: has {texts}, not four numbers under {LARGEST_COORDINATE:,.0f}")
    a, b, c, d = found
    return a, b, c, d


def _angle(shape: Element, where: str) -> float:
    """Return the angle in radians from `rotation`, which is in degrees."""
    degrees = finite_number(shape.get("rotation", "0"), LARGEST_COORDINATE)
    if degrees is None:
        raise DataError("F6", f"{where}: rotation is {shape.get('rotation')!r}, not a number of degrees")
    return math.radians(degrees)
