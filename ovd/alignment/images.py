"""Images without labels: a folder, tar shards of pairs, or the images of an annotated set."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ovd.data.images.files import READ_SUFFIXES, images_below
from ovd.data.index import AnnotationIndex, ImageRecord, Labels
from ovd.data.pairs.manifest import list_shards
from ovd.data.pairs.tar import PairShards


@dataclass(frozen=True)
class UnlabelledImages:
    """Images of which nothing else is known: an `ImageSource` of the loader."""

    image_ids: Int64[np.ndarray, " N"]
    """Positions in the source that they were taken from."""
    path_of: Callable[[int], Path]
    """From an image's id to its file, or to the shard and the key: its name in reports."""
    content_of: Callable[[int], Path | bytes]
    """From an image's id to its file, or to the bytes of it."""
    fingerprint: str
    """Hash of the names of the whole source, in order."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def record(self, image: int) -> ImageRecord:
        """The image at a position 0..N-1; its size is known when it is decoded."""
        image_id = int(self.image_ids[image])
        return ImageRecord(image_id, self.path_of(image_id), height=0, width=0, labels=Labels.empty())

    def encoded(self, image: int) -> Path | bytes:
        """The image's file, or its content."""
        return self.content_of(int(self.image_ids[image]))

    def take(self, images: Int64[np.ndarray, " K"]) -> "UnlabelledImages":
        """Only the images at these positions."""
        return replace(self, image_ids=self.image_ids[images])


def images_of_folder(folder: Path) -> UnlabelledImages:
    """All images in a folder and the folders below it, by path.

    Raises:
        ValueError: there is none.
    """
    files = images_below(folder)
    if not files:
        raise ValueError(
            f"{folder}: no images ({', '.join(READ_SUFFIXES)}) in this folder or below it; set data.source.images to "
            "the folder that holds them (a relative path starts at the data root)"
        )
    names = [str(path.relative_to(folder)) for path in files]
    return UnlabelledImages(np.arange(len(files)), files.__getitem__, files.__getitem__, _hash(names))


def images_of_shards(folder: Path, num_shards: int | None = None) -> UnlabelledImages:
    """The images of tar shards of image-text pairs; their captions are not read.

    Args:
        num_shards: number of shards to use, the first ones; all by default.

    Raises:
        DataError: F13, F14 no shards, or a damaged one.
        ValueError: the shards hold no pair.
    """
    shards = PairShards(folder, only=list(islice(list_shards(folder), num_shards)))
    if len(shards) == 0:
        raise ValueError(f"{folder}: its shards hold no pair; set data.source.shards to a folder of filled ones")
    indexes = [(name, shards.index(name)) for name in shards.file_names]
    fingerprint = _hash([f"{name} {index.num_bytes} {len(index)}" for name, index in indexes])
    return UnlabelledImages(np.arange(len(shards)), partial(_path_in_shards, shards), shards.image, fingerprint)


def images_of_index(index: AnnotationIndex) -> UnlabelledImages:
    """The images of an annotated set.

    Raises:
        ValueError: it has none.
    """
    if len(index) == 0:
        raise ValueError(f"{index.path} lists no images; set data.source to a set that does")
    return UnlabelledImages(
        np.arange(len(index)), partial(_path_in_index, index), index.encoded, _hash(list(index.image_files))
    )


def _path_in_shards(shards: PairShards, position: int) -> Path:
    return shards.directory / shards.location(position)


def _path_in_index(index: AnnotationIndex, position: int) -> Path:
    return index.record(position).path


def _hash(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
