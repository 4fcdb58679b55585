"""Reader of Pascal VOC: one XML file per image."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ovd.data.formats.box_form import FEW, SHARES, notice_doubles
from ovd.data.formats.named_objects import NamedImage, NamedObject, table_of_images
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, ReadRequest
from ovd.data.formats.text_files import finite_numbers, read_names, whole_number
from ovd.data.formats.voc_files import ImageFolder, XmlFile, xml_files
from ovd.data.formats.xml_tree import read_xml
from ovd.data.report import DataError, DataReport
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.shapes import Float64

_MAX_XML_BYTES = 16 * 1024 * 1024
_NUM_NAMED = 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read and check a set of VOC annotations.

    Image ids are positions in the order of the XML files, category ids positions in the list of class names, both from
    0. A `difficult` object is a crowd region: training ignores it, and evaluation ignores detections of it.

    Args:
        request: `annotations` is a folder of XML files, read in the order of their paths, or a text file with one name
            per line (VOCdevkit's `ImageSets/Main/train.txt`), whose XML files lie in `../../Annotations`. `images` is
            the image folder. An image has the name of the XML file or, if there is no such image, that of `<filename>`.
            A missing size, or a size of 0, is read from the image.
        report: counts images that are left out, since they state no size and cannot be read, images with another name
            than `<filename>` (F8), and corners at 0 (F5).

    Raises:
        DataError: F1 invalid XML, a DOCTYPE (no entity is ever expanded), a missing element, no XML files; F2 a
            duplicate image or class name; F3 a class that is not in the list of names; F6 a corner that is not a finite
            number; F8, F9, F10 for evaluation, an image whose size cannot be read.
    """
    folder = ImageFolder(request.images, anywhere=request.options.by_base_name)
    zero_based = request.options.zero_based
    xml = xml_files(request.annotations, report)
    images = [_read_image(file, folder, report, zero_based=zero_based) for file in xml]
    source = request.options.class_names
    names = None if source is None else _class_names(images, source)
    without_size = [image for image in images if image.size == (0, 0)]
    if request.index and request.images is None and without_size:
        where = f"{without_size[0].where}: no <size>"
        raise DataError("F1", f"{where}; give the folder of images (--images) to read the size from the image")
    table = table_of_images(request, request.images, images, report, labels=names)
    boxes = np.array([item.box for image in images for item in image.objects], dtype=np.float64).reshape(-1, 4)
    if len(boxes) > FEW and 0 < boxes[:, 2:].max() <= 1:
        raise DataError("F6", f"{request.annotations}: {SHARES}")
    if not zero_based:
        _notice_zeros(request.annotations, boxes, report)
    notice_doubles(table, report)
    return table


def _read_image(file: XmlFile, images: ImageFolder, report: DataReport, *, zero_based: bool) -> NamedImage:
    path = file.path
    root = read_xml(path, _MAX_XML_BYTES)
    if root.tag != "annotation":
        raise DataError("F1", f"{path}: the root element is <{root.tag}>, not <annotation>")
    items = root.findall("object")
    if len(items) < sum(1 for _ in root.iter("object")):
        raise DataError("F1", f"{path}: an <object> is inside another element; put it directly into <annotation>")
    objects = tuple(
        _read_object(item, f"{path}: object {number}", zero_based=zero_based)
        for number, item in enumerate(items, start=1)
    )
    image = images.image_of(file, root.findtext("filename"), report)
    return NamedImage(image, _size(path, root), objects, str(path))


def _read_object(item: Element, where: str, *, zero_based: bool) -> NamedObject:
    """Read an `<object>`; the edges of its box are converted to count from 0."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError("F1", f"{where}: no <name>")
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    corners = finite_numbers(texts, LARGEST_COORDINATE)
    if corners is None:
        raise DataError(
            "F6", f"{where}: <bndbox> has {dict(zip(_CORNERS, texts, strict=True))}, not four finite numbers"
        )
    left, top, right, bottom = corners
    difficult = (item.findtext("difficult") or "").strip()
    if difficult not in ("", "0", "1", "Unspecified"):  # some tools write Unspecified
        raise DataError("F1", f"{where}: <difficult> is {difficult!r}, not 0 or 1")
    first = 0 if zero_based else 1
    return NamedObject(name, (left - first, top - first, right, bottom), where, is_crowd=difficult == "1")


def _size(path: Path, root: Element) -> tuple[int, int]:
    """Return height and width as stated in the file; two zeros if one is missing or 0."""
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
    """Count objects with a corner at 0, a sign that the corners of a file count from 0."""
    count = int(((boxes[:, :2] < 0) & (boxes[:, :2] >= -1)).any(axis=1).sum())
    if count:
        words = "corners at 0, though VOC counts pixels from 1; if these count from 0, set zero_based=true (tools:"
        report.count_noticed("F5", f"{path}: {count:,} of {len(boxes):,} objects have {words} --zero-based)")


def _class_names(images: Sequence[NamedImage], source: Path) -> list[str]:
    """Read the class names in a file, and check that they include those of all objects."""
    names = read_names(source)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError("F2", f"{source}: class names that occur twice: {join_first(twice, _NUM_NAMED)}")
    known = set(names)
    objects = [item for image in images for item in image.objects]
    unknown = [f"{item.where} is {item.label!r}" for item in objects if item.label not in known]
    if unknown:
        named = join_first(unknown, _NUM_NAMED, separator="; ")
        raise DataError(
            "F3", f"{source}: {format_count(len(unknown), 'object')} of classes that are not in this file: {named}"
        )
    return names
