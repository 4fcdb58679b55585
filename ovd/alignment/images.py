"""Images without labels, from a folder, tar shards of image-text pairs, or an annotated set."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ovd.data.images.files import READ_SUFFIXES, find_images
from ovd.data.index import AnnotationIndex, ImageRecord, Labels
from ovd.data.pairs.manifest import list_shards
from ovd.data.pairs.tar import PairShards


@dataclass(frozen=True)
class UnlabeledImages:
    """Images without labels: an `ImageSource` of the loader."""

    image_ids: Int64[np.ndarray, " N"]
    """Positions of the images in the source."""
    path_of: Callable[[int], Path]
    """Function from an image's id to its name in reports: its file, or its shard and key."""
    content_of: Callable[[int], Path | bytes]
    """Function from an image's id to its file or its encoded bytes."""
    fingerprint: str
    """Hash of the whole source: the names of all images in order, or the names and sizes of all shards."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def record(self, image: int) -> ImageRecord:
        """Return the image at a position 0..N-1; its size is unknown until it is decoded."""
        image_id = int(self.image_ids[image])
        return ImageRecord(image_id, self.path_of(image_id), height=0, width=0, labels=Labels.empty())

    def encoded(self, image: int) -> Path | bytes:
        """Return the image's file or its encoded bytes."""
        return self.content_of(int(self.image_ids[image]))

    def take(self, images: Int64[np.ndarray, " K"]) -> "UnlabeledImages":
        """Keep only the images at these positions."""
        return replace(self, image_ids=self.image_ids[images])


def images_from_folder(folder: Path) -> UnlabeledImages:
    """Collect all images in a folder and the folders below it, sorted by path.

    Raises:
        ValueError: there are none.
    """
    files = find_images(folder)
    if not files:
        raise ValueError(
            f"{folder}: no images ({', '.join(READ_SUFFIXES)}) in this folder or below it; set data.source.images to "
            "the folder that holds them (a relative path starts at the data root)"
        )
    names = [str(path.relative_to(folder)) for path in files]
    return UnlabeledImages(np.arange(len(files)), files.__getitem__, files.__getitem__, _hash(names))


def images_from_shards(folder: Path, num_shards: int | None = None) -> UnlabeledImages:
    """Collect the images of tar shards of image-text pairs, without reading captions.

    Args:
        num_shards: number of shards to use, the first ones; all by default.

    Raises:
        DataError: there are no shards, or one is damaged (F13, F14).
        ValueError: the shards hold no pair.
    """
    shards = PairShards(folder, only=list(islice(list_shards(folder), num_shards)))
    if len(shards) == 0:
        raise ValueError(f"{folder}: the shards contain no pairs; set data.source.shards to another folder")
    indexes = [(name, shards.index(name)) for name in shards.file_names]
    fingerprint = _hash([f"{name} {index.num_bytes} {len(index)}" for name, index in indexes])
    return UnlabeledImages(np.arange(len(shards)), partial(_path_in_shards, shards), shards.image, fingerprint)


def images_from_index(index: AnnotationIndex) -> UnlabeledImages:
    """Collect the images of an annotated set.

    Raises:
        ValueError: the set has none.
    """
    if len(index) == 0:
        raise ValueError(f"{index.path} lists no images; set data.source to a data set with images")
    return UnlabeledImages(
        np.arange(len(index)), partial(_path_in_index, index), index.encoded, _hash(list(index.image_files))
    )


def _path_in_shards(shards: PairShards, position: int) -> Path:
    return shards.directory / shards.location(position)


def _path_in_index(index: AnnotationIndex, position: int) -> Path:
    return index.record(position).path


def _hash(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
