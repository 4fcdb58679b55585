"""Reader of Pascal VOC: one XML file per image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ovd.data.box_arrays import to_xywh
from ovd.data.category import Category
from ovd.data.formats.box_form import FEW, SHARES, notice_doubles
from ovd.data.formats.image_names import files_by_base_name, refuse_same_files
from ovd.data.formats.image_sizes import fill_sizes
from ovd.data.formats.table import LARGEST_COORDINATE, UNCOUNTED, AnnotationTable, ReadRequest
from ovd.data.formats.text_files import finite_number, read_names, whole_number
from ovd.data.formats.voc_files import ImageFolder, XmlFile, xml_files
from ovd.data.formats.xml_tree import read_xml
from ovd.data.report import DataError, DataReport
from ovd.shapes import Float64

_MAX_XML_BYTES = 16 * 1024 * 1024
_NUM_NAMED = 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    """One `<object>`; the box is xyxy in pixels, with edges that count from 0."""

    name: str
    box: tuple[float, float, float, float]
    is_difficult: bool
    where: str


@dataclass(frozen=True)
class _Image:
    """One XML file."""

    path: Path
    file: str
    size: tuple[int, int]
    """Height and width; 0 and 0 where the file lacks one, or gives 0."""
    objects: tuple[_Object, ...]


def read_voc(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Reads and checks a set of VOC annotations.

    Image ids are positions in the order of the XML files, category ids positions in the list of class names, both from
    0. A `difficult` object is a crowd region: training ignores it, and the evaluation forgives detections of it.

    Args:
        request: `annotations` is a folder of XML files, which are taken by path, or a text file with one name per line
            (VOCdevkit's `ImageSets/Main/train.txt`), whose XML files lie in `../../Annotations`. `images` is the folder
            of the images. An image has the XML file's name or, where none has it, that of `<filename>`. A size of 0,
            or none, is read from the image.
        report: counts images that are left out, since their size is missing and the image cannot be read, those whose
            `<filename>` is of another image (F8), and corners at 0 (F5).

    Raises:
        DataError: F1 not whole XML, a DOCTYPE (no entity is ever expanded), a missing element, no XML files; F2 an
            image or a class name twice; F3 a class that the list of names lacks; F6 a corner that is no finite number;
            F8, F9, F10 where a truth is wanted, an image whose size cannot be read.
    """
    folder = ImageFolder(request.images, anywhere=request.options.by_base_name)
    zero_based = request.options.zero_based
    xml = xml_files(request.annotations, report)
    images = [_read_image(file, folder, report, zero_based=zero_based) for file in xml]
    if request.options.by_base_name:
        files = files_by_base_name(request.annotations, [image.file for image in images], request.images)
        images = [replace(image, file=file) for image, file in zip(images, files, strict=True)]
    refuse_same_files([image.path for image in images], [image.file for image in images])
    names = _class_names(images, request.options.class_names)
    row_of_name = {name: row for row, name in enumerate(names)}

    image_files = tuple(image.file for image in images)
    sizes, is_available = None, None
    if request.index:
        stated = np.array([image.size for image in images], np.int64).reshape(-1, 2)
        if request.images is None and not stated.all():
            path = images[int(np.flatnonzero(stated[:, 0] == 0)[0])].path
            raise DataError("F1", f"{path}: no <size>, and no folder of images is given to read it from the image")
        sizes, is_available = fill_sizes(stated, image_files, request, report)
    objects = [(position, item) for position, image in enumerate(images) for item in image.objects]
    boxes = np.array([item.box for _, item in objects], dtype=np.float64).reshape(-1, 4)
    boxes_xywh = to_xywh(boxes)
    if len(boxes) > FEW and 0 < boxes[:, 2:].max() <= 1:
        raise DataError("F6", f"{request.annotations}: {SHARES}")
    if not zero_based:
        _notice_zeros(request.annotations, boxes, report)
    table = AnnotationTable(
        path=request.annotations,
        categories=tuple(Category(row, name, (), None, UNCOUNTED) for row, name in enumerate(names)),
        image_ids=np.arange(len(images)),
        image_of_object=np.array([position for position, _ in objects], dtype=np.int64),
        class_of_object=np.array([row_of_name[item.name] for _, item in objects], dtype=np.int64),
        boxes_xywh=boxes_xywh,
        is_crowd=np.array([item.is_difficult for _, item in objects], dtype=bool),
        name_of_object=lambda row: objects[row][1].where,
        areas_px=boxes_xywh[:, 2:].prod(axis=1),
        images_root=request.images,
        image_files=image_files,
        image_sizes=sizes,
        is_available=is_available,
    )
    notice_doubles(table, report)
    return table


def _read_image(file: XmlFile, images: ImageFolder, report: DataReport, *, zero_based: bool) -> _Image:
    path = file.path
    root = read_xml(path, _MAX_XML_BYTES)
    if root.tag != "annotation":
        raise DataError("F1", f"{path}: the root element is <{root.tag}>, not <annotation>")
    objects = tuple(
        _read_object(item, f"{path}: object {number}", zero_based=zero_based)
        for number, item in enumerate(root.iterfind("object"), start=1)
    )
    return _Image(path, images.image_of(file, root.findtext("filename"), report), _size(path, root), objects)


def _read_object(item: Element, where: str, *, zero_based: bool) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError("F1", f"{where}: no <name>")
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    corners = [finite_number(text, LARGEST_COORDINATE) for text in texts]
    if None in corners:
        raise DataError(
            "F6", f"{where}: <bndbox> has {dict(zip(_CORNERS, texts, strict=True))}, not four finite numbers"
        )
    left, top, right, bottom = (corner for corner in corners if corner is not None)
    difficult = (item.findtext("difficult") or "").strip()
    if difficult not in ("", "0", "1", "Unspecified"):  # the last is that of some tools, for objects nobody judged
        raise DataError("F1", f"{where}: <difficult> is {difficult!r}, not 0 or 1")
    first = 0 if zero_based else 1
    return _Object(name, (left - first, top - first, right, bottom), difficult == "1", where)


def _size(path: Path, root: Element) -> tuple[int, int]:
    """Height and width as the file states them; 0 and 0 where one is missing or 0."""
    sides = []
    for side in ("height", "width"):
        text = (root.findtext(f"size/{side}") or "0").strip()
        number = whole_number(text, LARGEST_COORDINATE)
        if number is None:
            raise DataError("F1", f"{path}: <{side}> of <size> is {text!r}, not a whole number of pixels")
        sides.append(number)
    height, width = sides
    return (height, width) if height and width else (0, 0)


def _notice_zeros(path: Path, boxes: Float64[np.ndarray, "M 4"], report: DataReport) -> None:
    """Count objects with a corner at 0, which a file has if its corners count from there."""
    count = int(((boxes[:, :2] < 0) & (boxes[:, :2] >= -1)).any(axis=1).sum())
    if count:
        words = "corners at 0, though VOC's pixels count from 1: if these count from 0, zero_based=true says so (tools:"
        report.noticed("F5", f"{path}: {count:,} of {len(boxes):,} objects have {words} --zero-based)")


def _class_names(images: Sequence[_Image], source: Path | None) -> list[str]:
    """The vocabulary: the names in a file, which has to have those of all objects, else the names of all objects."""
    if source is None:
        return sorted({item.name for image in images for item in image.objects})
    names = read_names(source)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError("F2", f"{source}: class names that occur twice: {', '.join(twice[:_NUM_NAMED])}")
    known = set(names)
    unknown = [f"{item.where} is {item.name!r}" for image in images for item in image.objects if item.name not in known]
    if unknown:
        raise DataError(
            "F3", f"{source}: {len(unknown)} objects of classes that it lacks: {'; '.join(unknown[:_NUM_NAMED])}"
        )
    return names
