"""Construction of an `AnnotationTable` from image names and object labels, for formats without ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ovd.data.box_arrays import to_xywh
from ovd.data.category import Category
from ovd.data.formats.drawn_shapes import Box
from ovd.data.formats.image_names import files_by_base_name
from ovd.data.formats.image_sizes import fill_sizes
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.formats.text_files import whole_characters
from ovd.data.report import DataError, DataReport


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object with its label."""

    label: str
    box: Box
    where: str
    """File and record, for messages."""
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image and its objects."""

    file: str
    """Path relative to the image folder."""
    size: tuple[int, int]
    """Height and width in pixels; 0 if they are not stated."""
    objects: tuple[NamedObject, ...]
    where: str
    """File or record, for messages."""


def table_of_images(
    request: ReadRequest,
    root: Path | None,
    images: Sequence[NamedImage],
    report: DataReport,
    *,
    labels: Sequence[str] | None = None,
) -> AnnotationTable:
    """Return the table of the given images; image ids and category ids are positions from 0.

    Args:
        root: the image folder; may be None if all images have a size, or no index is to be made.
        report: counts images without a stated size that cannot be read.
        labels: class names in the order of their ids, unique and including those of all objects; by default the labels
            of the objects, sorted.

    Raises:
        DataError: F1 a label with an unpaired surrogate; F2 a duplicate image.
    """
    path = request.annotations
    files = tuple(image.file for image in images)
    if request.options.by_base_name:
        files = files_by_base_name(path, files, root)
    first: dict[str, NamedImage] = {}
    for file, image in zip(files, images, strict=True):
        if (other := first.setdefault(file, image)) is not image:
            where = f"{other.where} and {image.where} are both of the image {file}"
            raise DataError("F2", f"{where}; remove one, or merge the records")
    sizes, is_available = None, None
    if request.index:
        stated = np.array([image.size for image in images], np.int64).reshape(-1, 2)
        sizes, is_available = fill_sizes(stated, files, replace(request, images=root), report)
    objects = [(position, item) for position, image in enumerate(images) for item in image.objects]
    for _, item in objects:
        whole_characters(item.label, item.where)
    if labels is None:
        labels = sorted({item.label for _, item in objects})
    row_of_label = {label: row for row, label in enumerate(labels)}
    boxes = np.array([item.box for _, item in objects], np.float64).reshape(-1, 4)
    boxes_xywh = to_xywh(boxes)
    return AnnotationTable(
        path=path,
        categories=tuple(Category(row, label) for row, label in enumerate(labels)),
        image_ids=np.arange(len(images)),
        image_of_object=np.array([position for position, _ in objects], np.int64),
        class_of_object=np.array([row_of_label[item.label] for _, item in objects], np.int64),
        boxes_xywh=boxes_xywh,
        is_crowd=np.array([item.is_crowd for _, item in objects], dtype=bool),
        name_of_object=lambda row: objects[row][1].where,
        areas_px=boxes_xywh[:, 2:].prod(axis=1),
        images_root=root,
        image_files=files,
        image_sizes=sizes,
        is_available=is_available,
    )
