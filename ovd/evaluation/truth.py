"""What an annotation file says that box metrics need, checked before any metric engine sees it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ovd.data.annotations import read_json


@dataclass(frozen=True)
class Category:
    """One class of the annotation file."""

    id: int
    name: str
    frequency: str | None
    """LVIS's "r", "c" or "f": seen in at most 10, at most 100, more training images. None where the file is silent."""


@dataclass(frozen=True)
class Image:
    """One image of the annotation file; the two tuples are LVIS's federated labels, empty for COCO."""

    id: int
    negative_category_ids: tuple[int, ...]
    not_exhaustive_category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Truth:
    """The images, categories and R true boxes of an annotation file; images and categories ascend by id."""

    path: Path
    images: tuple[Image, ...]
    categories: tuple[Category, ...]
    image_ids: Int64[np.ndarray, " R"]
    category_ids: Int64[np.ndarray, " R"]
    boxes_xywh: Float64[np.ndarray, "R 4"]
    areas_px: Float64[np.ndarray, " R"]
    """Of the object's mask where the file has one: it decides between small, medium and large."""
    crowd: Bool[np.ndarray, " R"]
    num_without_area: int
    """Boxes left out because their area is not positive (LVIS only: its evaluator leaves them out too)."""

    def num_boxes_of_categories(self) -> Int64[np.ndarray, " K"]:
        """How many boxes, crowds aside, each of `categories` has."""
        rows = np.searchsorted([category.id for category in self.categories], self.category_ids[~self.crowd])
        return np.bincount(rows, minlength=len(self.categories)).astype(np.int64)

    def only(self, image_ids: Int64[np.ndarray, " I"], category_ids: Int64[np.ndarray, " K"]) -> "Truth":
        """The part of the file that a benchmark judges: some of its images, some of its classes."""
        kept = np.isin(self.image_ids, image_ids) & np.isin(self.category_ids, category_ids)
        images, categories = set(image_ids.tolist()), set(category_ids.tolist())
        return replace(
            self,
            images=tuple(image for image in self.images if image.id in images),
            categories=tuple(category for category in self.categories if category.id in categories),
            image_ids=self.image_ids[kept],
            category_ids=self.category_ids[kept],
            boxes_xywh=self.boxes_xywh[kept],
            areas_px=self.areas_px[kept],
            crowd=self.crowd[kept],
        )

    def as_dataset(self) -> dict[str, list[dict[str, Any]]]:
        """A fresh data set in COCO form for an engine, which may write into it.

        Annotation ids count from 1: the engines' matching tables take id 0 for "unmatched".
        """
        columns = (self.image_ids, self.category_ids, self.boxes_xywh, self.areas_px, self.crowd.astype(np.int64))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "images": [
                {
                    "id": image.id,
                    "neg_category_ids": list(image.negative_category_ids),
                    "not_exhaustive_category_ids": list(image.not_exhaustive_category_ids),
                }
                for image in self.images
            ],
            "categories": [
                # lvis-api stops at a category without frequency; the groups are formed by us, from `categories`
                {"id": category.id, "name": category.name, "frequency": category.frequency or "f"}
                for category in self.categories
            ],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
                for number, (image, category, box, area, crowd) in enumerate(rows, start=1)
            ],
        }


def read_truth(path: Path, *, federated: bool) -> Truth:
    """Reads a COCO JSON file, or an LVIS one.

    Args:
        federated: LVIS: images must carry `neg_category_ids` and `not_exhaustive_category_ids`, boxes without area are
            left out and counted, `iscrowd` is not looked at (lvis-api knows no crowds).

    Raises:
        ValueError: naming the file and the record, when it is not what an engine would evaluate rightly.
    """
    dataset = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset, dict) or not isinstance(dataset.get(key), list):
            raise ValueError(f"{path}: not a COCO or LVIS annotation file: it has no list {key!r}")

    images = tuple(sorted((_image(record, path, federated) for record in dataset["images"]), key=lambda i: i.id))
    categories = tuple(sorted((_category(record, path) for record in dataset["categories"]), key=lambda c: c.id))
    _refuse_duplicates([image.id for image in images], f"{path}: images")
    _refuse_duplicates([category.id for category in categories], f"{path}: categories")
    annotation_ids = [_integer(record, "id", f"{path}: an annotation") for record in dataset["annotations"]]
    _refuse_duplicates(annotation_ids, f"{path}: annotations")

    known_images = {image.id for image in images}
    known_categories = {category.id for category in categories}
    rows = []
    num_without_area = 0
    for record in dataset["annotations"]:
        row = _annotation(record, path, federated, known_images, known_categories)
        if federated and row[3] <= 0:
            num_without_area += 1
        else:
            rows.append(row)
    image_ids, category_ids, boxes, areas, crowd = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    return Truth(
        path=path,
        images=images,
        categories=categories,
        image_ids=np.array(image_ids, np.int64),
        category_ids=np.array(category_ids, np.int64),
        boxes_xywh=np.array(boxes, np.float64).reshape(-1, 4),
        areas_px=np.array(areas, np.float64),
        crowd=np.array(crowd, np.bool_),
        num_without_area=num_without_area,
    )


def _image(record: dict[str, Any], path: Path, federated: bool) -> Image:
    image_id = _integer(record, "id", f"{path}: an image")
    if not federated:
        return Image(image_id, negative_category_ids=(), not_exhaustive_category_ids=())
    where = f"{path}: image {image_id}"
    negative = _required(record, "neg_category_ids", where)
    not_exhaustive = _required(record, "not_exhaustive_category_ids", where)
    if not isinstance(negative, list) or not isinstance(not_exhaustive, list):
        raise ValueError(f"{where}: neg_category_ids and not_exhaustive_category_ids must be lists")
    return Image(image_id, tuple(negative), tuple(not_exhaustive))


def _category(record: dict[str, Any], path: Path) -> Category:
    category_id = _integer(record, "id", f"{path}: a category")
    frequency = record.get("frequency")
    if frequency not in (None, "r", "c", "f"):
        raise ValueError(f"{path}: category {category_id}: frequency {frequency!r} is none of r, c, f")
    return Category(category_id, _required(record, "name", f"{path}: category {category_id}"), frequency)


def _annotation(
    record: dict[str, Any], path: Path, federated: bool, known_images: set[int], known_categories: set[int]
) -> tuple[int, int, list[float], float, bool]:
    """Image id, category id, box, area, crowd of one annotation."""
    where = f"{path}: annotation {record['id']}"
    image_id = _integer(record, "image_id", where)
    category_id = _integer(record, "category_id", where)
    box = _required(record, "bbox", where)
    if image_id not in known_images:
        raise ValueError(f"{where}: there is no image {image_id}")
    if category_id not in known_categories:
        raise ValueError(f"{where}: there is no category {category_id}")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite_number(value) for value in box):
        raise ValueError(f"{where}: bbox {box!r} is not [x, y, width, height] in finite numbers")
    area = _required(record, "area", where) if federated else record.get("area", box[2] * box[3])
    if not _is_finite_number(area):
        raise ValueError(f"{where}: area {area!r} is not a finite number")
    if federated and record.get("ignore"):
        # lvis-api honours the key, hotcoco does not: their figures would differ
        raise ValueError(f"{where}: LVIS has no 'ignore'; remove the annotation or the key")
    return image_id, category_id, box, area, not federated and bool(record.get("iscrowd", 0))


def _required(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{where} has no {key!r}")
    return record[key]


def _integer(record: Any, key: str, where: str) -> int:
    value = _required(record, key, where)
    if type(value) is not int:
        raise ValueError(f"{where}: {key} {value!r} is not an integer")
    return value


def _is_finite_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")  # false for NaN as well


def _refuse_duplicates(ids: list[int], where: str) -> None:
    seen: set[int] = set()
    for identity in ids:
        if identity in seen:
            raise ValueError(f"{where}: id {identity} occurs twice")
        seen.add(identity)
