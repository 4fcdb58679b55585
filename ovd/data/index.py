"""A data set in flat arrays: its images, their labels and the vocabulary.

Category ids of a file have gaps and mean nothing elsewhere; from here on a class is a row of the vocabulary, the
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
    """What is known of an image: R objects, I crowd regions. Boxes are xyxy in its pixels.

    Classes are rows of the vocabulary; those of an image-text pair are ids of texts (text/pair_texts.py). On the way to
    the model they become `ovd.structures.Targets`, which has the same fields and explains them.
    """

    boxes: Float32[np.ndarray, "R 4"]
    classes: Int64[np.ndarray, " R"]
    crowd_boxes: Float32[np.ndarray, "I 4"]
    negative_classes: Int64[np.ndarray, " N"]
    not_exhaustive_classes: Int64[np.ndarray, " E"]
    image_texts: Int64[np.ndarray, " T"]
    """Ids of the texts that an image-text pair is about; empty for an annotated image."""

    @classmethod
    def empty(cls) -> "Labels":
        """Of an image of which nothing is known."""
        no_boxes, nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return cls(no_boxes, nothing, no_boxes, nothing, nothing, nothing)

    def moved(self, move: Callable[[Float32[np.ndarray, "K 4"]], Float32[np.ndarray, "K 4"]]) -> "Labels":
        """The same with all boxes, crowd regions too, where `move` puts them."""
        return replace(self, boxes=move(self.boxes), crowd_boxes=move(self.crowd_boxes))

    def select(self, objects: Bool[np.ndarray, " R"], crowds: Bool[np.ndarray, " I"]) -> "Labels":
        """Only these objects and crowd regions; what is known of the whole image stays."""
        return replace(
            self, boxes=self.boxes[objects], classes=self.classes[objects], crowd_boxes=self.crowd_boxes[crowds]
        )


_NO_TEXTS = np.zeros(0, np.int64)
ANNOTATED = tuple(field.name for field in fields(Labels) if field.name != "image_texts")
"""Fields of `Labels` that an annotation file fills: each is a `Ragged` of the index, too."""


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is known of it."""

    id: int
    path: Path
    """Its file; for an image in a tar shard, the shard and the key."""
    height: int
    """In pixels, as annotated; 0, like `width`, for an image without annotation, whose size is known once decoded."""
    width: int
    labels: Labels
    """Boxes are inside the image, with sides of at least 1 px."""


@dataclass(frozen=True)
class Ragged:
    """One array per image, end to end: image i has rows offsets[i] to offsets[i + 1]."""

    values: np.ndarray
    offsets: Int64[np.ndarray, " N_plus_1"]

    @classmethod
    def of(cls, values: np.ndarray, counts: Int64[np.ndarray, " N"] | Sequence[int]) -> "Ragged":
        """The rows of all images end to end, and how many of them each image has."""
        return cls(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]))

    def __getitem__(self, image: int) -> np.ndarray:
        return self.values[self.offsets[image] : self.offsets[image + 1]]

    def images_of_values(self) -> Int64[np.ndarray, " M"]:
        """The image that each row of `values` belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def select(self, selected: Bool[np.ndarray, " M"]) -> "Ragged":
        """Only the selected rows of `values`; as many images as before."""
        counts = np.bincount(self.images_of_values()[selected], minlength=len(self.offsets) - 1)
        return Ragged.of(self.values[selected], counts)


@dataclass(frozen=True)
class AnnotationIndex:
    """All images of an annotation file, in its order, and the vocabulary, by ascending category id."""

    path: Path
    format: DataFormatName
    """Name of its record in `ovd.data.formats.known.FORMATS`, which its evaluation follows."""
    categories: tuple[Category, ...]
    images_root: Path | None
    image_ids: Int64[np.ndarray, " N"]
    image_sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels."""
    image_files: tuple[str, ...]
    """Relative to `images_root`."""
    boxes: Ragged
    classes: Ragged
    crowd_boxes: Ragged
    negative_classes: Ragged
    not_exhaustive_classes: Ragged
    truth: Truth | None = None
    """What evaluators compare detections with, of the whole file also where the index has a part of it (`take`,
    `keep_classes`); None for training sets, which do not need it."""
    exhaustive_truth: Truth | None = None
    """The truth with every object of every class, in the whole file; None where that is not known, and for training
    sets."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class, by row of the vocabulary."""
        return tuple(category.name for category in self.categories)

    @property
    def synonyms(self) -> tuple[tuple[str, ...], ...]:
        """The synonyms of each class, by row of the vocabulary."""
        return tuple(category.synonyms for category in self.categories)

    def record(self, image: int) -> ImageRecord:
        """The image at a position 0..N-1; its arrays are views."""
        height, width = self.image_sizes[image].tolist()
        return ImageRecord(
            id=int(self.image_ids[image]),
            path=self._path(image),
            height=height,
            width=width,
            labels=Labels(**{name: ragged[image] for name, ragged in self._labels().items()}, image_texts=_NO_TEXTS),
        )

    def take(self, images: Int64[np.ndarray, " K"]) -> "AnnotationIndex":
        """Only the images at these positions, which ascend; the vocabulary stays whole."""

        def taken(ragged: Ragged) -> Ragged:
            kept = np.isin(ragged.images_of_values(), images)
            return Ragged.of(ragged.values[kept], np.diff(ragged.offsets)[images])

        labels: dict[str, Any] = {name: taken(ragged) for name, ragged in self._labels().items()}
        return replace(
            self,
            image_ids=self.image_ids[images],
            image_sizes=self.image_sizes[images],
            image_files=tuple(self.image_files[image] for image in images.tolist()),
            **labels,
        )

    def fingerprint(self) -> str:
        """Hash of all that training takes from the file: images, their order, objects and vocabulary."""
        digest = hashlib.sha256(repr(self.categories).encode())
        # A file's name that is not UTF-8 has halves of characters, which strict encoding refuses.
        digest.update("\n".join(self.image_files).encode(errors="surrogatepass"))
        parts = [part for ragged in self._labels().values() for part in (ragged.values, ragged.offsets)]
        for array in (self.image_ids, self.image_sizes, *parts):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def encoded(self, image: int) -> Path:
        """Where the image's pixels are."""
        if self.images_root is None:
            raise ValueError(f"{self.path} was loaded without a folder of images")
        return self._path(image)

    def _path(self, image: int) -> Path:
        file = self.image_files[image]
        return Path(file) if self.images_root is None else self.images_root / file

    def _labels(self) -> dict[str, Ragged]:
        """All images' labels by field of `Labels`, in its order."""
        return {name: getattr(self, name) for name in ANNOTATED}


def images_per_class(
    images: Int64[np.ndarray, " M"], classes: Int64[np.ndarray, " M"], num_classes: int
) -> Int64[np.ndarray, " C"]:
    """In how many images each class has an object, from the image and the class of every object."""
    pairs = np.sort(images * num_classes + classes)  # many times faster than np.unique
    is_first = np.diff(pairs, prepend=-1) > 0
    return np.bincount(pairs[is_first] % max(num_classes, 1), minlength=num_classes)
