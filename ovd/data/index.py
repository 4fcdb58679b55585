"""A data set in flat arrays: its images, their labels and the vocabulary.

Category ids have gaps and are valid only within their file; from here on, a class is a row of the vocabulary, the
position in `AnnotationIndex.categories`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ovd.choices import DataFormatName
from ovd.data.category import Category
from ovd.data.truth import Truth
from ovd.shapes import Bool, Float32, Int64


@dataclass(frozen=True)
class Labels:
    """Labels of an image with R objects and I crowd regions; boxes are xyxy in pixels of the image.

    Classes are rows of the vocabulary; those of an image-text pair are text ids (text/pair_texts.py). The model
    receives labels as `ovd.structures.Targets`, which has the same fields and documents them.
    """

    boxes: Float32[np.ndarray, "R 4"]
    classes: Int64[np.ndarray, " R"]
    crowd_boxes: Float32[np.ndarray, "I 4"]
    negative_classes: Int64[np.ndarray, " N"]
    not_exhaustive_classes: Int64[np.ndarray, " E"]
    image_texts: Int64[np.ndarray, " T"]
    """Ids of all texts of an image-text pair; empty for an annotated image."""

    @classmethod
    def empty(cls) -> "Labels":
        """Return the labels of an image without any annotation."""
        no_boxes, nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return cls(no_boxes, nothing, no_boxes, nothing, nothing, nothing)

    def map_boxes(self, move: Callable[[Float32[np.ndarray, "K 4"]], Float32[np.ndarray, "K 4"]]) -> "Labels":
        """Return the labels with all boxes, crowd regions included, mapped by `move`."""
        return replace(self, boxes=move(self.boxes), crowd_boxes=move(self.crowd_boxes))

    def select(self, objects: Bool[np.ndarray, " R"], crowds: Bool[np.ndarray, " I"]) -> "Labels":
        """Return only the selected objects and crowd regions; labels of the whole image stay."""
        return replace(
            self, boxes=self.boxes[objects], classes=self.classes[objects], crowd_boxes=self.crowd_boxes[crowds]
        )


_NO_TEXTS = np.zeros(0, np.int64)
ANNOTATED = tuple(field.name for field in fields(Labels) if field.name != "image_texts")
"""Fields of `Labels` that an annotation file fills; the index has a `Ragged` with the name of each."""


@dataclass(frozen=True)
class ImageRecord:
    """One image and its labels."""

    id: int
    path: Path
    """Image file; for an image in a tar shard, the shard and the key."""
    height: int
    """Annotated height in pixels; 0, like `width`, for an image without annotation, whose size is known only once it is
    decoded."""
    width: int
    labels: Labels
    """Labels whose boxes lie inside the image, with sides of at least 1 px."""


@dataclass(frozen=True)
class Ragged:
    """One array per image, concatenated: image i has rows offsets[i] to offsets[i + 1] of `values`."""

    values: np.ndarray
    offsets: Int64[np.ndarray, " N_plus_1"]

    @classmethod
    def from_rows(cls, values: np.ndarray, counts: Int64[np.ndarray, " N"] | Sequence[int]) -> "Ragged":
        """Build from the concatenated rows of all images and the number of rows of each image."""
        return cls(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]))

    def __getitem__(self, image: int) -> np.ndarray:
        return self.values[self.offsets[image] : self.offsets[image + 1]]

    def images_of_values(self) -> Int64[np.ndarray, " M"]:
        """Return the position of the image that each row of `values` belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def select(self, selected: Bool[np.ndarray, " M"]) -> "Ragged":
        """Return only the selected rows of `values`; the number of images stays the same."""
        counts = np.bincount(self.images_of_values()[selected], minlength=len(self.offsets) - 1)
        return Ragged.from_rows(self.values[selected], counts)


@dataclass(frozen=True)
class AnnotationIndex:
    """All images of an annotation file, in file order, and the vocabulary, by ascending category id."""

    path: Path
    format: DataFormatName
    """Key of `ovd.data.formats.supported.FORMATS`, which determines how the data set is evaluated."""
    categories: tuple[Category, ...]
    images_root: Path | None
    image_ids: Int64[np.ndarray, " N"]
    image_sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels."""
    image_files: tuple[str, ...]
    """Paths relative to `images_root`."""
    boxes: Ragged
    classes: Ragged
    crowd_boxes: Ragged
    negative_classes: Ragged
    not_exhaustive_classes: Ragged
    truth: Truth | None = None
    """Ground truth for the evaluators; None for training sets, which do not need it. It covers the whole file, even if
    the index is a part of it (`take`, `keep_classes`)."""
    exhaustive_truth: Truth | None = None
    """Ground truth with every object of every class in the whole file; None if it is unknown, and for training
    sets."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each class, by row of the vocabulary."""
        return tuple(category.name for category in self.categories)

    @property
    def synonyms(self) -> tuple[tuple[str, ...], ...]:
        """Synonyms of each class, by row of the vocabulary."""
        return tuple(category.synonyms for category in self.categories)

    def record(self, image: int) -> ImageRecord:
        """Return the record of the image at a position 0..N-1; its arrays are views."""
        height, width = self.image_sizes[image].tolist()
        return ImageRecord(
            id=int(self.image_ids[image]),
            path=self._path(image),
            height=height,
            width=width,
            labels=Labels(**{name: ragged[image] for name, ragged in self._labels().items()}, image_texts=_NO_TEXTS),
        )

    def take(self, images: Int64[np.ndarray, " K"]) -> "AnnotationIndex":
        """Return only the images at these ascending positions; the vocabulary stays the same."""

        def taken(ragged: Ragged) -> Ragged:
            kept = np.isin(ragged.images_of_values(), images)
            return Ragged.from_rows(ragged.values[kept], np.diff(ragged.offsets)[images])

        labels: dict[str, Any] = {name: taken(ragged) for name, ragged in self._labels().items()}
        return replace(
            self,
            image_ids=self.image_ids[images],
            image_sizes=self.image_sizes[images],
            image_files=tuple(self.image_files[image] for image in images.tolist()),
            **labels,
        )

    def fingerprint(self) -> str:
        """Return a hash of everything that training reads from the file: images, their order, objects, vocabulary."""
        digest = hashlib.sha256(repr(self.categories).encode())
        # A file name that is not UTF-8 contains lone surrogates, which strict encoding refuses.
        digest.update("\n".join(self.image_files).encode(errors="surrogatepass"))
        parts = [part for ragged in self._labels().values() for part in (ragged.values, ragged.offsets)]
        for array in (self.image_ids, self.image_sizes, *parts):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def encoded(self, image: int) -> Path:
        """Return the path of the image file.

        Raises:
            ValueError: the index was loaded without an image folder.
        """
        if self.images_root is None:
            raise ValueError(f"{self.path} was loaded without a folder of images")
        return self._path(image)

    def _path(self, image: int) -> Path:
        file = self.image_files[image]
        return Path(file) if self.images_root is None else self.images_root / file

    def _labels(self) -> dict[str, Ragged]:
        """Return the labels of all images by field of `Labels`, in the order of its fields."""
        return {name: getattr(self, name) for name in ANNOTATED}


def images_per_class(
    images: Int64[np.ndarray, " M"], classes: Int64[np.ndarray, " M"], num_classes: int
) -> Int64[np.ndarray, " C"]:
    """Count the images in which each class has an object, from the image and the class of every object."""
    pairs = np.sort(images * num_classes + classes)  # many times faster than np.unique
    is_first = np.diff(pairs, prepend=-1) > 0
    return np.bincount(pairs[is_first] % max(num_classes, 1), minlength=num_classes)
