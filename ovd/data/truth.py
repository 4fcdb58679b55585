"""Ground truth of a data set exactly as in its annotation file, for the metric engines."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.category import Category
from ovd.shapes import Bool, Float64, Int64


@dataclass(frozen=True)
class TruthImage:
    """One image of a ground truth; the two tuples are LVIS's federated labels, empty for other formats."""

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
    """Whether images carry federated labels and there are no crowds, as in LVIS."""
    images: tuple[TruthImage, ...]
    categories: tuple[Category, ...]
    image_ids: Int64[np.ndarray, " R"]
    category_ids: Int64[np.ndarray, " R"]
    boxes_xywh: Float64[np.ndarray, "R 4"]
    areas_px: Float64[np.ndarray, " R"]
    """Area of each object in pixels, that of its mask if the file has one; it decides between small, medium and
    large."""
    crowd: Bool[np.ndarray, " R"]
    num_without_area: int
    """Number of boxes left out because their area is not positive (LVIS only: lvis-api leaves them out too)."""

    @cached_property
    def ids_of_images(self) -> Int64[np.ndarray, " N"]:
        """Id of each image in `images`."""
        return np.array([image.id for image in self.images], np.int64)

    @cached_property
    def ids_of_categories(self) -> Int64[np.ndarray, " K"]:
        """Id of each category in `categories`."""
        return np.array([category.id for category in self.categories], np.int64)

    def image_rows(self, ids: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        """Return the position of each id in `images`, which must contain it."""
        return _positions(self.ids_of_images, ids)

    def category_rows(self, ids: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        """Return the position of each id in `categories`, which must contain it."""
        return _positions(self.ids_of_categories, ids)

    def fingerprint(self) -> str:
        """Return a hash of everything that an evaluation reads from the file."""
        digest = hashlib.sha256(repr((self.is_federated, self.images, self.categories)).encode(errors="surrogatepass"))
        for array in (self.image_ids, self.category_ids, self.boxes_xywh, self.areas_px, self.crowd):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def num_boxes_of_categories(self) -> Int64[np.ndarray, " K"]:
        """Count the boxes of each category in `categories`, without crowds."""
        rows = self.category_rows(self.category_ids[~self.crowd])
        return np.bincount(rows, minlength=len(self.categories)).astype(np.int64)

    def restrict(self, image_ids: Int64[np.ndarray, " I"], category_ids: Int64[np.ndarray, " K"]) -> "Truth":
        """Return the part of the ground truth that a benchmark evaluates: the given images and classes."""
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
        """Return a fresh data set in COCO format for a metric engine, which may write into it.

        Annotation ids count from 1, since the engines' matching tables use id 0 for "unmatched".
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
        """Return the images as in `as_dataset`."""
        return [
            {
                "id": image.id,
                "neg_category_ids": list(image.negative_category_ids),
                "not_exhaustive_category_ids": list(image.not_exhaustive_category_ids),
            }
            for image in self.images
        ]

    def category_records(self) -> list[dict[str, Any]]:
        """Return the categories as in `as_dataset`."""
        return [
            # lvis-api fails on a category without frequency; our metrics take the frequency groups from `categories`
            {"id": category.id, "name": category.name, "frequency": category.frequency or "f"}
            for category in self.categories
        ]


def _positions(known: Int64[np.ndarray, " K"], ids: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
    """Return the position of each id in `known`, which ascends and contains all of them."""
    span = int(known[-1]) - int(known[0]) + 1 if len(known) else 0
    if span > 8 * (len(known) + len(ids)):
        return np.searchsorted(known, ids)
    table = np.zeros(span, np.int64)  # many times faster than a search
    table[known - known[:1]] = np.arange(len(known))
    return table[ids - known[:1]]
