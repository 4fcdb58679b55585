"""Column-by-column reader of regular JSON in the formats of LVIS and COCO, in a quarter of the time.

msgspec decodes the known fields of a file into typed records and skips everything else, masks above all. A file with
anything unexpected is left to coco_records.py, which is slower and reports what is wrong.
"""

import math
import sys
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from ovd.data.formats.coco_records import Source, file_of_url, without_gc
from ovd.data.formats.image_names import files_by_base_name
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationNames, AnnotationTable, FederatedLabels, ReadRequest
from ovd.data.report import DataError
from ovd.shapes import Float64, Int64

_Box = tuple[float, float, float, float]


# gc=False: there are millions of records without cycles, which the garbage collector would traverse again and again.
class _Image(Struct, gc=False):
    id: int
    height: int = 0
    width: int = 0
    coco_url: str | UnsetType = UNSET
    file_name: str | UnsetType = UNSET
    neg_category_ids: tuple[int, ...] | UnsetType = UNSET
    not_exhaustive_category_ids: tuple[int, ...] | UnsetType = UNSET


class _Object(Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: _Box
    area: float | UnsetType = UNSET
    iscrowd: Literal[0, 1] = 0
    ignore: int = 0


class _File(Struct):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[dict[str, Any]]


def read_columns(request: ReadRequest, content: bytes, *, federated: bool) -> AnnotationTable | None:
    """Read the content of a file as `read_coco_json` does; None if `read_records` has to read it, faulty or not."""
    try:
        if not content.isascii():
            content.decode()  # msgspec does not check the bytes of fields that it skips
        with without_gc():
            return _table(request, msgspec.json.decode(content, type=_File), federated)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError, DataError):
        return None


def _table(request: ReadRequest, file: _File, federated: bool) -> AnnotationTable | None:
    path, images, objects = request.annotations, file.images, file.annotations
    source = Source(path, msgspec.structs.asdict(file))
    category_rows = sorted(file.categories, key=lambda row: source.field(row, "categories", "id"))
    category_ids = np.array(list(source.rows_by_id(category_rows, "categories")), np.int64)
    image_ids, object_ids = _integers(images, "id"), _integers(objects, "id")
    order = np.argsort(image_ids, kind="stable")
    image_of_object = _positions(image_ids[order], _integers(objects, "image_id"))
    class_of_object = _positions(category_ids, _integers(objects, "category_id"))
    boxes = _numbers(chain.from_iterable(map(attrgetter("bbox"), objects)), 4 * len(objects)).reshape(-1, 4)
    if request.options.xyxy:
        boxes[:, 2:] -= boxes[:, :2]
    limit = LARGEST_COORDINATE if request.index else sys.float_info.max
    if not (_are_unique(image_ids) and _are_unique(object_ids)) or not (np.abs(boxes) < limit).all():
        return None
    if image_of_object is None or class_of_object is None:
        return None
    labels, files, areas = None, None, None
    sizes = np.stack([_integers(images, "height"), _integers(images, "width")], axis=1)
    have_sizes = bool(((sizes > 0) & (sizes < LARGEST_COORDINATE)).all())
    if federated or request.index:
        labels = _federated_labels(images, category_ids, required=federated, known=request.index)
        if labels is None:
            return None
    if request.index:
        names = [_image_file(row, federated) for row in images]
        if not have_sizes or None in names:
            return None
        files = tuple(request.file_of(name) for name in names if name is not None)
        if request.options.by_base_name:
            files = files_by_base_name(path, files, request.images)
    if request.truth:
        areas = _areas(objects, boxes, required=federated)
        if areas is None or (federated and any(row.ignore for row in objects)):
            return None
    return AnnotationTable(
        path=path,
        categories=source.categories(category_rows, request, federated),
        image_ids=image_ids,
        image_of_object=order[image_of_object],
        class_of_object=class_of_object,
        boxes_xywh=boxes,
        is_crowd=_integers(objects, "iscrowd") != 0,
        name_of_object=AnnotationNames(path, object_ids),
        areas_px=areas,
        images_root=request.images,
        image_files=files,
        image_sizes=sizes if have_sizes else None,
        federated=labels if federated else None,
    )


def _integers(records: list[Any], field: str) -> Int64[np.ndarray, " N"]:
    return np.fromiter(map(attrgetter(field), records), np.int64, len(records))


def _numbers(values: Iterable[float], count: int) -> Float64[np.ndarray, " N"]:
    return np.fromiter(values, np.float64, count)


def _are_unique(ids: Int64[np.ndarray, " N"]) -> bool:
    return bool((np.diff(np.sort(ids)) > 0).all())


def _positions(known: Int64[np.ndarray, " K"], values: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"] | None:
    """Return the position of each value in `known`, which is sorted; None if a value is not in it."""
    if not len(known):
        return None if len(values) else values
    positions = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return positions if np.array_equal(known[positions], values) else None


def _federated_labels(
    images: list[_Image], category_ids: Int64[np.ndarray, " C"], *, required: bool, known: bool
) -> FederatedLabels | None:
    """Return the image-level labels; None if one is missing though `required`, or has an unknown category though all
    must be `known`."""
    absent = tuple(() if row.neg_category_ids is UNSET else row.neg_category_ids for row in images)
    partial = tuple(
        () if row.not_exhaustive_category_ids is UNSET else row.not_exhaustive_category_ids for row in images
    )
    if required and any(row.neg_category_ids is UNSET or row.not_exhaustive_category_ids is UNSET for row in images):
        return None
    named = np.array(list(chain.from_iterable(absent + partial)), np.int64)
    if known and _positions(category_ids, named) is None:
        return None
    return FederatedLabels(absent, partial)


def _areas(objects: list[_Object], boxes: Float64[np.ndarray, "M 4"], *, required: bool) -> np.ndarray | None:
    """Return the area of every object, by default that of its box; None if one is missing though `required`."""
    missing = np.fromiter((row.area is UNSET for row in objects), bool, len(objects))
    if required and missing.any():
        return None
    stated = _numbers((math.nan if row.area is UNSET else row.area for row in objects), len(objects))
    return np.where(missing, boxes[:, 2] * boxes[:, 3], stated)


def _image_file(row: _Image, federated: bool) -> str | None:
    """Return the path relative to the image folder; None if the record has none."""
    if federated and row.coco_url:
        return file_of_url(row.coco_url)
    return row.file_name if isinstance(row.file_name, str) else None
