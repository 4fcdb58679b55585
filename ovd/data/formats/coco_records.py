"""Record-by-record reader of JSON in the formats of LVIS and COCO, whose errors name the faulty record."""

import gc
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ovd.choices import Frequency
from ovd.data.category import UNCOUNTED, Category
from ovd.data.formats.drawn_shapes import Box, around_points
from ovd.data.formats.image_names import files_by_base_name
from ovd.data.formats.image_sizes import fill_sizes
from ovd.data.formats.json_object import is_number
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, FederatedLabels, ReadRequest
from ovd.data.formats.text_files import finite_number, whole_characters
from ovd.data.report import DataError, DataReport
from ovd.files import GZIP
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.shapes import Float64, Int64
from ovd.text.names import name_key

_NUM_NAMED = 20

_CROWD: dict[Any, bool] = {0: False, 1: True, "0": False, "1": True}  # 0 equals false and 0.0, 1 true and 1.0

_NO_BOX: tuple[Any, ...] = (None, [])
"""Values of `bbox` in files that have masks only; None also if the field is missing."""
_SMALLEST_POLYGON_NUMBERS = 6

_FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def read_records(request: ReadRequest, content: bytes, report: DataReport, *, federated: bool) -> AnnotationTable:
    """Read the content of a file, without byte order mark, as `read_coco_json` does."""
    path = request.annotations
    source = Source(path, _parse(path, content))
    images, objects, category_rows = map(source.records, ("images", "annotations", "categories"))
    _read_ids(images, "id", *_FEDERATED_FIELDS)
    _read_ids(objects, "id", "image_id", "category_id")
    _read_ids(category_rows, "id")
    category_rows = sorted(category_rows, key=lambda row: source.field(row, "categories", "id"))
    row_of_image = source.rows_by_id(images, "images")
    row_of_category = source.rows_by_id(category_rows, "categories")
    source.number_objects(objects, report)
    if federated:
        source.check_federated_labels(images)
    source.check_references(images if request.index else [], objects, row_of_image, row_of_category)
    if federated:
        source.check_label_ids(images)

    sizes, files, is_available = None, None, None
    if request.index:
        files = source.image_files(images, request, federated)
        sizes, is_available = fill_sizes(source.sizes(images, request), files, request, report)
    else:
        stated = _stated_sizes(images)
        sizes = stated if stated.all() else None
    limit = LARGEST_COORDINATE if request.index else math.inf
    boxes = source.boxes(objects, limit, report, xyxy=request.options.xyxy)
    object_ids = [row["id"] for row in objects]
    return AnnotationTable(
        path=path,
        categories=source.categories(category_rows, request, federated),
        image_ids=np.array([row["id"] for row in images], dtype=np.int64),
        image_of_object=np.array([row_of_image[row["image_id"]] for row in objects], dtype=np.int64),
        class_of_object=np.array([row_of_category[row["category_id"]] for row in objects], dtype=np.int64),
        boxes_xywh=boxes,
        is_crowd=np.array([source.crowd(row) for row in objects], dtype=bool),
        name_of_object=lambda row: f"{path}: annotation {object_ids[row]}",
        areas_px=source.areas_or_fault(objects, boxes, federated) if request.truth else None,
        images_root=request.images,
        image_files=files,
        image_sizes=sizes,
        is_available=is_available,
        federated=_federated_labels(images) if federated else None,
    )


def _parse(path: Path, content: bytes) -> Any:
    """Parse an annotation file without its masks, except those of objects that have no box."""

    def without_masks(record: dict[str, Any]) -> dict[str, Any]:
        # Masks are nine tenths of an LVIS file, and the detector does not use them, so they are freed while parsing.
        if record.get("bbox") not in _NO_BOX:
            record.pop("segmentation", None)
        return record

    if content.startswith(GZIP):
        raise DataError("F1", f"{path}: the file is compressed with gzip; unpack it first (gunzip)")
    try:
        text = content.decode()
        with without_gc():
            return json.loads(text, object_hook=without_masks)
    except UnicodeDecodeError as error:
        raise DataError("F1", f"{path}: invalid UTF-8 at byte {error.start} of {len(content)}") from error
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        raise DataError("F1", f"{path}: invalid JSON at byte {byte} of {len(content)}: {error.msg}") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError("F1", f"{path}: a number has thousands of digits") from error
    except RecursionError as error:
        raise DataError("F1", f"{path}: the JSON is nested too deeply") from error


@contextmanager
def without_gc() -> Iterator[None]:
    """Disable garbage collection in a block that makes millions of objects and no cycles; it would double its time."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()


class Source:
    """A parsed annotation file with checked access to its fields; errors name file, list, record and field."""

    def __init__(self, path: Path, content: Any):
        self.path = path
        self._content = content

    def records(self, name: str) -> list[dict[str, Any]]:
        rows = self._content.get(name) if isinstance(self._content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError("F1", f"{self.path}: the list {name!r} is missing; is this an annotation file?")
        return rows

    def field(self, row: dict[str, Any], name: str, field: str, kind: type = int) -> Any:
        value = row.get(field)
        if type(value) is not kind:
            problem = f"is {value!r}, not {kind.__name__}"
            if field == "id" and isinstance(value, str):
                problem += f"; ids must be whole numbers: number the {name}, and change all references to them"
        elif isinstance(value, int) and abs(value) > np.iinfo(np.int64).max:
            problem = f"is {value}, which is too large for 64 bits"
        else:
            return value
        raise DataError("F1", f"{self.path}: {name} record {row.get('id', '(no id)')}: {field} {problem}")

    def positive(self, row: dict[str, Any], name: str, field: str) -> int:
        value = self.field(row, name, field)
        if not 0 < value < LARGEST_COORDINATE:
            raise DataError("F1", f"{self.path}: {name} record {row['id']}: {field} is {value}")
        return value

    def size(self, row: dict[str, Any], *, required: bool) -> tuple[int, int]:
        """Return height and width, also if written as 640.0; two zeros if one is missing and not `required`."""
        if not required and (row.get("height") is None or row.get("width") is None):
            return 0, 0
        for side in ("height", "width"):
            if type(row.get(side)) is float:
                row[side] = whole_number_of(row[side])
        return self.positive(row, "images", "height"), self.positive(row, "images", "width")

    def rows_by_id(self, rows: list[dict[str, Any]], name: str) -> dict[int, int]:
        by_id: dict[int, int] = {}
        for position, row in enumerate(rows):
            first = by_id.setdefault(self.field(row, name, "id"), position)
            if first != position:
                raise DataError(
                    "F2", f"{self.path}: {name} records {first} and {position} have the same id, {row['id']}"
                )
        return by_id

    def number_objects(self, objects: list[dict[str, Any]], report: DataReport) -> None:
        """Renumber annotations whose ids are missing or not unique, and check that every annotation has an id."""
        if _name_nothing([row.get("id") for row in objects]):
            report.count_repaired("F2", f"{self.path}: annotations have no unique ids; they are numbered from 1")
            for number, row in enumerate(objects, start=1):
                row["id"] = number
        for row in objects:
            self.field(row, "annotations", "id")

    def check_federated_labels(self, images: list[dict[str, Any]]) -> None:
        for row in images:
            for field in _FEDERATED_FIELDS:
                if not isinstance(row.get(field), list):
                    raise DataError(
                        "F7",
                        f"{self.path}: image {row['id']} has no {field}, without which LVIS metrics would be "
                        f"wrong. For files without federated labels, use the format 'coco'",
                    )

    def check_label_ids(self, images: list[dict[str, Any]]) -> None:
        for row in images:
            for field in _FEDERATED_FIELDS:
                for category_id in row[field]:
                    if type(category_id) is not int or abs(category_id) > np.iinfo(np.int64).max:
                        raise DataError(
                            "F7", f"{self.path}: image {row['id']}: {field} has {category_id!r}, which is not an id"
                        )

    def check_references(
        self,
        images: list[dict[str, Any]],
        objects: list[dict[str, Any]],
        row_of_image: dict[int, int],
        row_of_category: dict[int, int],
    ) -> None:
        unknown = []
        for row in objects:
            if not _is_known(row.get("image_id"), row_of_image):
                unknown.append(f"annotation {row['id']} of image {row.get('image_id')!r}")
            if not _is_known(row.get("category_id"), row_of_category):
                unknown.append(f"annotation {row['id']} of category {row.get('category_id')!r}")
        for row in images:
            for field in _FEDERATED_FIELDS:
                labels = row.get(field)  # COCO's form has none, and nothing depends on them there
                unknown += [
                    f"image {row['id']}, {field}, category {category_id!r}"
                    for category_id in (labels if isinstance(labels, list) else ())
                    if not _is_known(category_id, row_of_category)
                ]
        if unknown:
            raise DataError(
                "F3",
                f"{self.path}: {format_count(len(unknown), 'reference')} to unknown images or categories: "
                f"{join_first(unknown, _NUM_NAMED, separator='; ')}",
            )

    def boxes(
        self, objects: list[dict[str, Any]], limit: float, report: DataReport, *, xyxy: bool
    ) -> Float64[np.ndarray, "M 4"]:
        """Return the xywh box of every object; numbers may be text, as in Roboflow's polygons.

        Args:
            limit: upper limit of the absolute value of each number.
            xyxy: whether the file has corners instead.
        """
        numbers: list[float] = []
        for row in objects:
            stated, where = row.get("bbox"), f"{self.path}: annotation {row['id']}"
            if stated in _NO_BOX and row.get("segmentation"):
                box = self._box_of_polygons(row, limit)
                report.count_repaired("F6", f"{where}: has no bbox; the box around its polygons is used")
                numbers.extend(box if xyxy else (*box[:2], box[2] - box[0], box[3] - box[1]))
                continue
            box = _without_text(stated, limit)
            if not (isinstance(box, list) and len(box) == 4 and all(is_number(number, limit) for number in box)):
                raise DataError("F6", f"{where}: bbox is {stated!r}, not four finite numbers")
            if box is not stated:
                report.count_repaired("F6", f"{where}: the numbers in {stated} are strings")
            numbers.extend(box)
        boxes = np.array(numbers, dtype=np.float64).reshape(-1, 4)
        if xyxy:
            boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def _box_of_polygons(self, row: dict[str, Any], limit: float) -> Box:
        """Return the xyxy box around all polygons of an object, each a list of alternating x and y."""
        polygons, where = row["segmentation"], f"{self.path}: annotation {row['id']}: has no bbox, and its segmentation"
        if not isinstance(polygons, list):
            raise DataError("F6", f"{where} is a mask, which is not converted to a box; add a bbox to the file")
        points = list[tuple[float, float]]()
        for polygon in polygons:
            numbers = _without_text(polygon, limit)
            is_right = isinstance(numbers, list) and len(numbers) >= _SMALLEST_POLYGON_NUMBERS and len(numbers) % 2 == 0
            if not (is_right and all(is_number(number, limit) for number in numbers)):
                raise DataError(
                    "F6",
                    f"{where} has {str(polygon)[:80]}; a polygon has an even number of finite numbers, 6 or more",
                )
            points += zip(numbers[::2], numbers[1::2], strict=True)
        return around_points(points)

    def crowd(self, row: dict[str, Any]) -> bool:
        """Return whether an object is a crowd; `iscrowd` may be written as by converters, such as 1.0 and "1"."""
        value = row.get("iscrowd", 0)
        if not isinstance(value, int | float | str) or value not in _CROWD:
            raise DataError("F1", f"{self.path}: annotation {row['id']}: iscrowd is {value!r}, not 0 or 1")
        return _CROWD[value]

    def areas(
        self, objects: list[dict[str, Any]], boxes: Float64[np.ndarray, "M 4"], federated: bool
    ) -> Float64[np.ndarray, " M"]:
        """Return the `area` of every object; in COCO's format it defaults to the area of the box."""
        areas: list[float] = []
        for row, box_area in zip(objects, (boxes[:, 2] * boxes[:, 3]).tolist(), strict=True):
            area: Any = row.get("area")
            if not federated:  # tools write COCO's area in different ways, or not at all
                area = box_area if area is None else finite_number(area, math.inf) if isinstance(area, str) else area
            if not is_number(area, math.inf):
                raise DataError("F6", f"{self.path}: annotation {row['id']}: area is {area!r}, not a finite number")
            if federated and row.get("ignore"):
                # lvis-api honors the key, hotcoco does not: their metrics would differ
                raise DataError(
                    "F7", f"{self.path}: annotation {row['id']}: LVIS has no 'ignore'; remove the annotation or the key"
                )
            areas.append(area)
        return np.array(areas, dtype=np.float64)

    def areas_or_fault(
        self, objects: list[dict[str, Any]], boxes: Float64[np.ndarray, "M 4"], federated: bool
    ) -> Float64[np.ndarray, " M"] | DataError:
        """Return the areas, or the error of a faulty one, which only evaluation raises: training does not use areas."""
        try:
            return self.areas(objects, boxes, federated)
        except DataError as error:
            return error

    def categories(self, rows: list[dict[str, Any]], request: ReadRequest, federated: bool) -> tuple[Category, ...]:
        parents = Counter(parent for row in rows if isinstance(parent := row.get("supercategory"), str))
        return tuple(self._category(row, parents, request, federated) for row in rows)

    def _category(self, row: dict[str, Any], parents: Counter[str], request: ReadRequest, federated: bool) -> Category:
        """Return a class. Only an index of LVIS requires synonyms and frequency; other files may have synonyms."""
        name, where = self.field(row, "categories", "name", str), f"{self.path}: category {row['id']}"
        if not name_key(name):
            raise DataError("F1", f"{where} has an empty name")
        whole_characters(name, where)
        frequency: Frequency | None = None
        synonyms: tuple[str, ...] = ()
        image_count = UNCOUNTED
        if federated or request.truth:
            frequency = row.get("frequency")
            if frequency not in ("r", "c", "f"):
                if federated and (request.index or frequency is not None):
                    raise DataError("F1", f"{where}: frequency is {frequency!r}, not r, c or f")
                frequency = None
        if request.index and (federated or "synonyms" in row):
            synonyms = tuple(self.field(row, "categories", "synonyms", list))
            if wrong := [synonym for synonym in synonyms if not isinstance(synonym, str)]:
                raise DataError("F1", f"{where}: the synonym {wrong[0]!r} is not a string")
            for synonym in synonyms:
                whole_characters(synonym, where)
        if federated and request.index and "image_count" in row:
            image_count = self.field(row, "categories", "image_count")
        is_parent = not federated and parents[name] > (row.get("supercategory") == name)  # of another class
        return Category(row["id"], name, synonyms, frequency, image_count, is_parent)

    def image_files(self, images: list[dict[str, Any]], request: ReadRequest, federated: bool) -> tuple[str, ...]:
        """Return the path of every image relative to the image folder, by `file_of` and the options of the request."""
        files = tuple(request.file_of(self.image_file(row, federated)) for row in images)
        return files_by_base_name(self.path, files, request.images) if request.options.by_base_name else files

    def sizes(self, images: list[dict[str, Any]], request: ReadRequest) -> Int64[np.ndarray, "N 2"]:
        """Return height and width of every image; zeros if they have to be read from the image."""
        if request.options.sizes_from_images and request.images is not None:
            return _stated_sizes(images)
        required = request.images is None
        return np.array([self.size(row, required=required) for row in images], np.int64).reshape(-1, 2)

    def image_file(self, row: dict[str, Any], federated: bool) -> str:
        """Return the path relative to the image folder that an image's record states."""
        if federated and row.get("coco_url"):
            return file_of_url(self.field(row, "images", "coco_url", str))
        return self.field(row, "images", "file_name", str)


def file_of_url(coco_url: str) -> str:
    """Return the path of an LVIS image relative to the image folder, such as `train2017/000000000009.jpg`.

    LVIS v1 has no `file_name`, and v0.5 has the file names of COCO 2014.
    """
    return "/".join(coco_url.split("/")[-2:])


def _read_ids(rows: list[dict[str, Any]], *fields: str) -> None:
    """Convert ids such as 7.0 and "7", and lists of them, to integers in place."""
    for row in rows:
        for field in fields:
            value = row.get(field)
            if isinstance(value, list):
                row[field] = [whole_number_of(item) for item in value]
            elif type(value) in (float, str):
                row[field] = whole_number_of(value)


def whole_number_of(value: Any) -> Any:
    """Convert a float or a text that is a whole number to an integer; return any other value unchanged."""
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if type(value) is str and re.fullmatch(r"-?(0|[1-9]\d{0,18})", value, re.ASCII):
        return int(value)
    return value


def _stated_size(row: dict[str, Any]) -> tuple[int, int]:
    """Return the stated height and width, or two zeros if they are not numbers of pixels."""
    height, width = (whole_number_of(row.get(side)) for side in ("height", "width"))
    are_sides = all(type(side) is int and 0 < side < LARGEST_COORDINATE for side in (height, width))
    return (height, width) if are_sides else (0, 0)


def _stated_sizes(images: list[dict[str, Any]]) -> Int64[np.ndarray, "N 2"]:
    return np.array([_stated_size(row) for row in images], np.int64).reshape(-1, 2)


def _name_nothing(ids: list[Any]) -> bool:
    """Whether annotation ids are missing or not unique, for example because they restart per image."""
    whole = [identifier for identifier in ids if identifier is not None]
    return len(whole) < len(ids) or len(set(map(repr, whole))) < len(ids)


def _federated_labels(images: list[dict[str, Any]]) -> FederatedLabels:
    return FederatedLabels(*(tuple(tuple(row[field]) for row in images) for field in _FEDERATED_FIELDS))


def _is_known(value: Any, row_of_id: dict[int, int]) -> bool:
    # The type is checked, too: true and 1.0 would be found as 1, and a list cannot be looked up.
    return type(value) is int and value in row_of_id


def _without_text(box: Any, limit: float) -> Any:
    """Return the box with numbers in place of decimals written as text; the same object if it has none."""
    if not isinstance(box, list) or not any(isinstance(number, str) for number in box):
        return box
    return [finite_number(number, limit) if isinstance(number, str) else number for number in box]
