"""Annotation files in LVIS or COCO format, checked record by record."""

import gc
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from ovd.data.index import AnnotationIndex, Category, Ragged, images_per_class
from ovd.data.objects365 import class_name, image_file, is_released
from ovd.data.report import DataError, DataReport

Format = Literal["lvis", "coco", "objects365"]

_NUM_NAMED = 20

# Corners further out than this are a fault; less is the rounding of the file's decimals.
_OUTSIDE_TOLERANCE_PX = 1e-3

_MIN_SIDE_PX = 1.0

# No image has sides near this; the comparison also fails for NaN and infinity.
_LARGEST_COORDINATE = 1e9


def load_annotations(annotations: Path, images: Path | None, *, format: Format, report: DataReport) -> AnnotationIndex:
    """Reads and checks a whole annotation file.

    Boxes with a side under 1 px are skipped (F4), boxes partly outside their image are clamped to it and those wholly
    outside skipped (F5); `report` counts them and what is used.

    Args:
        annotations: JSON of LVIS v0.5 or v1, COCO, or any file in COCO's form (category ids may have gaps).
        images: folder under which the images lie. LVIS: the one that holds `train2017/` and `val2017/`. COCO: the one
            that `file_name` is relative to. Objects365: the split's, with its `patch` folders or, v1, the images
            themselves. None leaves paths relative, for work that needs no pixels.
        format: "lvis" requires frequencies, synonyms and the federated labels. "objects365" is COCO's form with what is
            known to be amiss mended (objects365.py); images that were never released are left out (F8).
        report: counts repairs and skips.

    Raises:
        DataError: F1 not whole JSON; F2 an id twice; F3 unknown images or categories; F6 a box that is not four finite
            numbers; F7 LVIS without its federated labels; F1 also for a record without a required field.
    """
    content = read_json(annotations)
    source = _Source(annotations)
    image_rows = source.records(content, "images")
    category_rows = sorted(source.records(content, "categories"), key=lambda row: source.field(row, "categories", "id"))
    object_rows = source.records(content, "annotations")
    if format == "objects365":
        image_rows, object_rows = _released(source, image_rows, object_rows, report)
    row_of_image = source.rows_by_id(image_rows, "images")
    row_of_category = source.rows_by_id(category_rows, "categories")
    source.rows_by_id(object_rows, "annotations")

    if format == "lvis":
        _check_federated_labels(annotations, image_rows)
    _check_references(annotations, image_rows, object_rows, row_of_image, row_of_category)
    sizes = np.array(
        [[source.positive(row, "images", side) for side in ("height", "width")] for row in image_rows], dtype=np.int64
    ).reshape(-1, 2)

    image_of_object = np.array([row_of_image[row["image_id"]] for row in object_rows], dtype=np.int64)
    class_of_object = np.array([row_of_category[row["category_id"]] for row in object_rows], dtype=np.int64)
    is_crowd = np.array([bool(row.get("iscrowd", 0)) for row in object_rows], dtype=bool)
    boxes, is_kept = _clean_boxes(
        _read_boxes(annotations, object_rows),
        sizes[image_of_object],
        where=lambda row: f"{annotations}: annotation {object_rows[row]['id']}",
        report=report,
    )
    report.raise_if_too_many(len(object_rows), unit="box")

    def gather(values: np.ndarray, selected: Bool[np.ndarray, " M"]) -> Ragged:
        # A stable sort keeps the file's order within an image.
        order = np.flatnonzero(selected)[np.argsort(image_of_object[selected], kind="stable")]
        counts = np.bincount(image_of_object[selected], minlength=len(image_rows))
        return Ragged(values[order], _offsets(counts))

    def federated(field: str) -> Ragged:
        labels = [row[field] if format == "lvis" else [] for row in image_rows]
        values = [row_of_category[category_id] for image_labels in labels for category_id in image_labels]
        return Ragged(np.array(values, dtype=np.int64), _offsets(np.array([len(row) for row in labels], dtype=int)))

    is_object = is_kept & ~is_crowd
    image_counts = images_per_class(image_of_object[is_object], class_of_object[is_object], len(category_rows))
    categories = tuple(
        _category(source, row, format, count) for row, count in zip(category_rows, image_counts.tolist(), strict=True)
    )
    return AnnotationIndex(
        path=annotations,
        format="lvis" if format == "lvis" else "coco",
        categories=categories,
        images_root=images,
        image_ids=np.array([row["id"] for row in image_rows], dtype=np.int64),
        image_sizes=sizes,
        image_files=tuple(_image_file(source, row, format) for row in image_rows),
        boxes=gather(boxes, is_object),
        classes=gather(class_of_object, is_object),
        crowd_boxes=gather(boxes, is_kept & is_crowd),
        negative_classes=federated("neg_category_ids"),
        not_exhaustive_classes=federated("not_exhaustive_category_ids"),
    )


class _Source:
    """Reads required fields; an error names the file, the list, the record and the field."""

    def __init__(self, path: Path):
        self.path = path

    def records(self, content: Any, name: str) -> list[dict[str, Any]]:
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError("F1", f"{self.path}: no list of records named {name!r}; is this an annotation file?")
        return rows

    def field(self, row: dict[str, Any], name: str, field: str, kind: type = int) -> Any:
        value = row.get(field)
        if type(value) is not kind or (isinstance(value, int) and abs(value) > np.iinfo(np.int64).max):
            raise DataError(
                "F1",
                f"{self.path}: {name} record {row.get('id', '(no id)')}: {field} is {value!r}, not {kind.__name__}",
            )
        return value

    def positive(self, row: dict[str, Any], name: str, field: str) -> int:
        value = self.field(row, name, field)
        if not 0 < value < _LARGEST_COORDINATE:
            raise DataError("F1", f"{self.path}: {name} record {row['id']}: {field} is {value}")
        return value

    def rows_by_id(self, rows: list[dict[str, Any]], name: str) -> dict[int, int]:
        by_id: dict[int, int] = {}
        for position, row in enumerate(rows):
            first = by_id.setdefault(self.field(row, name, "id"), position)
            if first != position:
                raise DataError("F2", f"{self.path}: {name} records {first} and {position} share the id {row['id']}")
        return by_id


def read_json(path: Path) -> Any:
    """What an annotation file holds, without its masks.

    Raises:
        DataError: F1 it cannot be read, or is not whole JSON in UTF-8.
    """

    def without_masks(record: dict[str, Any]) -> dict[str, Any]:
        # Masks are nine tenths of an LVIS file, and the detector has no use for them: freed while parsing.
        record.pop("segmentation", None)
        return record

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            "F1", f"{path}: annotation file cannot be read ({error.strerror}); see data/README.md"
        ) from error
    was_collecting = gc.isenabled()
    # The parser makes millions of objects and no cycles: searching for cycles doubles its time.
    gc.disable()
    try:
        text = content.decode()
        return json.loads(text, object_hook=without_masks)
    except UnicodeDecodeError as error:
        raise DataError("F1", f"{path}: not UTF-8 at byte {error.start} of {len(content)}") from error
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        raise DataError("F1", f"{path}: not whole JSON at byte {byte} of {len(content)}: {error.msg}") from error
    except RecursionError as error:
        raise DataError("F1", f"{path}: JSON nested too deeply") from error
    finally:
        if was_collecting:
            gc.enable()


def _check_federated_labels(path: Path, image_rows: list[dict[str, Any]]) -> None:
    for row in image_rows:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not isinstance(row.get(field), list):
                raise DataError(
                    "F7",
                    f"{path}: image {row['id']} has no {field}; LVIS metrics would change without a word. "
                    f"Use format 'coco' for files without federated labels",
                )


def _check_references(
    path: Path,
    image_rows: list[dict[str, Any]],
    object_rows: list[dict[str, Any]],
    row_of_image: dict[int, int],
    row_of_category: dict[int, int],
) -> None:
    unknown = []
    for row in object_rows:
        if not _is_known(row.get("image_id"), row_of_image):
            unknown.append(f"annotation {row['id']} of image {row.get('image_id')!r}")
        if not _is_known(row.get("category_id"), row_of_category):
            unknown.append(f"annotation {row['id']} of category {row.get('category_id')!r}")
    for row in image_rows:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            unknown += [
                f"image {row['id']}, {field}, category {category_id!r}"
                for category_id in row.get(field, ())
                if not _is_known(category_id, row_of_category)
            ]
    if unknown:
        raise DataError(
            "F3",
            f"{path}: {len(unknown)} references to unknown images or categories: {'; '.join(unknown[:_NUM_NAMED])}",
        )


def _is_known(value: Any, row_of_id: dict[int, int]) -> bool:
    # Equal is not enough: true and 1.0 would be found as 1, and a list cannot be looked up.
    return type(value) is int and value in row_of_id


def _read_boxes(path: Path, object_rows: list[dict[str, Any]]) -> Float[np.ndarray, "M 4"]:
    """xywh of every annotation, float64, all finite."""
    numbers: list[float] = []
    for row in object_rows:
        box = row.get("bbox")
        # Types are compared, since numpy would turn the string "1.5" and true into numbers.
        if not (
            isinstance(box, list)
            and len(box) == 4
            and all(type(number) in (int, float) and abs(number) < _LARGEST_COORDINATE for number in box)
        ):
            raise DataError("F6", f"{path}: annotation {row['id']}: bbox is {box!r}, not four finite numbers")
        numbers.extend(box)
    return np.array(numbers, dtype=np.float64).reshape(-1, 4)


def _clean_boxes(
    boxes_xywh: Float[np.ndarray, "M 4"], sizes: Int64[np.ndarray, "M 2"], *, where: Any, report: DataReport
) -> tuple[Float32[np.ndarray, "M 4"], Bool[np.ndarray, " M"]]:
    """xyxy clamped to the image, and which boxes are fit for use."""
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    clamped = np.clip(boxes, 0, limits)

    shorter_side_inside = (clamped[:, 2:] - clamped[:, :2]).min(axis=1)
    too_small = boxes_xywh[:, 2:].min(axis=1) < _MIN_SIDE_PX
    wholly_outside = ~too_small & (shorter_side_inside <= 0)
    partly_outside = ~too_small & ~wholly_outside & (np.abs(clamped - boxes).max(axis=1) > _OUTSIDE_TOLERANCE_PX)
    # With the tolerance: a 1 px box at the border may end 1e-12 px outside.
    sliver = partly_outside & (shorter_side_inside < _MIN_SIDE_PX - _OUTSIDE_TOLERANCE_PX)
    is_kept = ~(too_small | wholly_outside | sliver)

    previous = -1
    for row in np.flatnonzero(~is_kept | partly_outside).tolist():
        report.used(row - previous - 1, unit="box")
        previous = row
        box, size = boxes[row].round(2).tolist(), sizes[row].tolist()
        if too_small[row]:
            report.skipped("F4", f"{where(row)}: a side of {box} is under {_MIN_SIDE_PX:g} px")
        elif wholly_outside[row]:
            report.skipped("F5", f"{where(row)}: {box} lies outside the image of height, width {size}")
        elif sliver[row]:
            report.skipped("F4", f"{where(row)}: {box} is under {_MIN_SIDE_PX:g} px inside height, width {size}")
        else:
            report.repaired("F5", f"{where(row)}: {box} clamped to height, width {size}")
            report.used(unit="box")
    report.used(len(boxes) - previous - 1, unit="box")
    return clamped.astype(np.float32), is_kept


def _released(
    source: _Source, image_rows: list[dict[str, Any]], object_rows: list[dict[str, Any]], report: DataReport
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Without the images of Objects365 that only its annotation file knows, and without their objects."""
    missing = {row.get("id") for row in image_rows if not is_released(source.field(row, "images", "file_name", str))}
    for row in image_rows:
        if row.get("id") in missing:
            report.repaired(
                "F8", f"{source.path}: image {row['id']}, {row['file_name']}: left out, no archive holds it"
            )
    kept_objects = [row for row in object_rows if row.get("image_id") not in missing]
    return [row for row in image_rows if row.get("id") not in missing], kept_objects


def _category(source: _Source, row: dict[str, Any], format: Format, images_in_file: int) -> Category:
    name = source.field(row, "categories", "name", str)
    if format != "lvis":
        name = class_name(name) if format == "objects365" else name
        return Category(id=row["id"], name=name, synonyms=(), frequency=None, image_count=images_in_file)
    frequency = source.field(row, "categories", "frequency", str)
    if frequency not in ("r", "c", "f"):
        raise DataError("F1", f"{source.path}: category {row['id']}: frequency is {frequency!r}, not r, c or f")
    synonyms = source.field(row, "categories", "synonyms", list)
    return Category(
        id=row["id"],
        name=name,
        synonyms=tuple(str(synonym) for synonym in synonyms),
        frequency=frequency,
        image_count=source.field(row, "categories", "image_count") if "image_count" in row else images_in_file,
    )


def _image_file(source: _Source, row: dict[str, Any], format: Format) -> str:
    """The path under the images folder."""
    if format == "lvis" and "coco_url" in row:
        # LVIS v1 has no file_name, and v0.5 gives the names of 2014; the URL's last folder is the one of 2017.
        return "/".join(source.field(row, "images", "coco_url", str).split("/")[-2:])
    file_name = source.field(row, "images", "file_name", str)
    return image_file(file_name) if format == "objects365" else file_name


def _offsets(counts: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N+1"]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
