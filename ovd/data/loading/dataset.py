"""Dataset that reads, decodes and transforms the samples of an image source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from ovd.data.images.image_file import ImageError
from ovd.data.images.jpeg_pixels import jpeg_pixels
from ovd.data.images.read import decode_image
from ovd.data.index import ImageRecord, Labels
from ovd.data.loading.mosaic import Mosaics, join_tiles
from ovd.data.loading.order import DrawnSample
from ovd.data.loading.transforms import Pixels, TrainTransform, Transform
from ovd.fault import Fault


@runtime_checkable
class ImageSource(Protocol):
    """Images with their labels: an annotation index, or labeled image-text pairs."""

    @property
    def image_ids(self) -> Int64[np.ndarray, " N"]: ...

    def __len__(self) -> int: ...

    def record(self, image: int) -> ImageRecord: ...

    def encoded(self, image: int) -> Path | bytes:
        """Return the path of the image file, or its content."""


@dataclass(frozen=True)
class LoadedSample:
    """An image and its labels after the transform."""

    image_id: int
    pixels: Pixels
    labels: Labels
    repaired: tuple[Fault, ...]


class DetectionDataset(Dataset):
    """Dataset of transformed samples; a sample that cannot be read is returned as its fault."""

    def __init__(self, source: ImageSource, transform: Transform, mosaics: Mosaics | None = None):
        self._source = source
        self._transform = transform
        self._mosaics = mosaics

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, drawn: DrawnSample) -> LoadedSample | Fault:
        tiles = self._mosaics.tiles(*drawn) if self._mosaics is not None else []
        if self._mosaics is None or not tiles:
            return self._load(*drawn, self._transform)
        loaded = [self._load(*tile, self._mosaics.tile_transform) for tile in tiles]
        readable = [tile for tile in loaded if isinstance(tile, LoadedSample)]
        if len(readable) < len(loaded):
            return next(fault for fault in loaded if isinstance(fault, Fault))
        pixels, labels = join_tiles([tile.pixels for tile in readable], [tile.labels for tile in readable])
        repaired = tuple(fault for tile in readable for fault in tile.repaired)
        return LoadedSample(readable[0].image_id, pixels, labels, repaired)

    def _load(self, image: int, seed: int, transform: Transform) -> LoadedSample | Fault:
        record = self._source.record(image)
        encoded = self._source.encoded(image)
        expected_size = (record.height, record.width) if record.height else None
        longest_side = transform.longest_side(seed) if isinstance(transform, TrainTransform) else None
        try:
            decoded = decode_image(
                encoded, expected_size=expected_size, longest_side=longest_side, decode_jpeg=jpeg_pixels
            )
        except ImageError as error:
            return error.fault if isinstance(encoded, Path) else error.fault.at(record.path)
        labels = record.labels
        if decoded.reduction > 1:
            labels = labels.map_boxes(lambda boxes: boxes / decoded.reduction)
        pixels, labels = transform(decoded.pixels, labels, seed)
        repaired = tuple(fault.at(record.path) for fault in decoded.repairs())
        return LoadedSample(record.id, pixels, labels, repaired)
