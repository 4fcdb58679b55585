"""The true boxes of a data set exactly as its annotation file has them, for the metric engines."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.category import Category
from ovd.shapes import Bool, Float64, Int64


@dataclass(frozen=True)
class JudgedImage:
    """One image of a truth; the two tuples are LVIS's federated labels, empty for other formats."""

    id: int
    negative_category_ids: tuple[int, ...]
    not_exhaustive_category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Truth:
    """The images, categories and R true boxes of an annotation file; images and categories ascend by id.

    Unlike the boxes of an `AnnotationIndex`, these are neither clamped to their image nor filtered.
    """

    path: Path
    is_federated: bool
    """True for LVIS: images carry federated labels, and there are no crowds."""
    images: tuple[JudgedImage, ...]
    categories: tuple[Category, ...]
    image_ids: Int64[np.ndarray, " R"]
    category_ids: Int64[np.ndarray, " R"]
    boxes_xywh: Float64[np.ndarray, "R 4"]
    areas_px: Float64[np.ndarray, " R"]
    """Area of the object's mask where the file has one; it decides between small, medium and large."""
    crowd: Bool[np.ndarray, " R"]
    num_without_area: int
    """Number of boxes left out because their area is not positive (LVIS only: lvis-api leaves them out too)."""

    @cached_property
    def ids_of_images(self) -> Int64[np.ndarray, " N"]:
        """The id of each of `images`."""
        return np.array([image.id for image in self.images], np.int64)

    @cached_property
    def ids_of_categories(self) -> Int64[np.ndarray, " K"]:
        """The id of each of `categories`."""
        return np.array([category.id for category in self.categories], np.int64)

    def image_rows(self, ids: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        """The position of each id in `images`; every id is one of theirs."""
        return _positions(self.ids_of_images, ids)

    def category_rows(self, ids: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        """The position of each id in `categories`; every id is one of theirs."""
        return _positions(self.ids_of_categories, ids)

    def fingerprint(self) -> str:
        """Hash of all that an evaluation takes from the file."""
        digest = hashlib.sha256(repr((self.is_federated, self.images, self.categories)).encode(errors="surrogatepass"))
        for array in (self.image_ids, self.category_ids, self.boxes_xywh, self.areas_px, self.crowd):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def num_boxes_of_categories(self) -> Int64[np.ndarray, " K"]:
        """Number of boxes of each of `categories`, without crowds."""
        rows = self.category_rows(self.category_ids[~self.crowd])
        return np.bincount(rows, minlength=len(self.categories)).astype(np.int64)

    def only(self, image_ids: Int64[np.ndarray, " I"], category_ids: Int64[np.ndarray, " K"]) -> "Truth":
        """The part of the truth that a benchmark evaluates: some of its images, some of its classes."""
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
            "images": self.image_records(),
            "categories": self.category_records(),
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
                for number, (image, category, box, area, crowd) in enumerate(rows, start=1)
            ],
        }

    def image_records(self) -> list[dict[str, Any]]:
        """The images as `as_dataset` has them."""
        return [
            {
                "id": image.id,
                "neg_category_ids": list(image.negative_category_ids),
                "not_exhaustive_category_ids": list(image.not_exhaustive_category_ids),
            }
            for image in self.images
        ]

    def category_records(self) -> list[dict[str, Any]]:
        """The categories as `as_dataset` has them."""
        return [
            # lvis-api stops at a category without frequency; the groups are formed by us, from `categories`
            {"id": category.id, "name": category.name, "frequency": category.frequency or "f"}
            for category in self.categories
        ]


def _positions(known: Int64[np.ndarray, " K"], ids: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
    """The position of each id among the known ones, which ascend; every id is one of them."""
    span = int(known[-1]) - int(known[0]) + 1 if len(known) else 0
    if span > 8 * (len(known) + len(ids)):
        return np.searchsorted(known, ids)
    table = np.zeros(span, np.int64)  # many times faster than to search
    table[known - known[:1]] = np.arange(len(known))
    return table[ids - known[:1]]
