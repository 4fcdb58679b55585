"""Four images as one training sample: more and smaller objects a step, in contexts of their own (YOLOv4,
arXiv:2004.10934)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
from jaxtyping import Float64, UInt8

from ovd.data.index import ImageRecord
from ovd.data.transforms import Sample

_MOSAIC_STREAM = 1  # apart from what a sample's seed draws in its transform


class Mosaics:
    """Which samples become mosaics, and of what; a function of the sample's seed."""

    def __init__(
        self,
        *,
        probability: float,
        weights: Float64[np.ndarray, " N"],
        tile_transform: Callable[[Sample, int], Sample],
    ):
        """
        Args:
            probability: that a sample becomes one.
            weights: how often an image is drawn as another's neighbour, in proportion (repeat_factors).
            tile_transform: a pure function of (sample, seed); half a sample's side at most.
        """
        self._probability = probability
        self._running_sum = np.cumsum(weights)
        self.tile_transform = tile_transform

    def tiles(self, image: int, seed: int) -> list[tuple[int, int]]:
        """Position and seed of the four images of a mosaic, `image` first; empty where the sample stays itself."""
        generator = np.random.default_rng((seed, _MOSAIC_STREAM))
        if generator.random() >= self._probability:
            return []
        drawn = np.searchsorted(self._running_sum, generator.random(3) * self._running_sum[-1], side="right")
        seeds = generator.integers(2**63, size=4).tolist()
        return list(zip([image, *drawn.tolist()], seeds, strict=True))


def join_tiles(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], records: Sequence[ImageRecord]
) -> tuple[UInt8[np.ndarray, "H W 3"], ImageRecord]:
    """Four images around the point where they meet, left to right and top to bottom, as tight as they go; what none
    covers is black.

    It has the first one's id and path. No class counts as verified to be absent: what one lacks, another may hold
    unsaid.

    Args:
        records: of the images as they are now, size and boxes included.
    """
    heights, widths = [record.height for record in records], [record.width for record in records]
    middle_y, middle_x = max(heights[:2]), max(widths[::2])
    height, width = middle_y + max(heights[2:]), middle_x + max(widths[1::2])
    mosaic = np.zeros((height, width, 3), dtype=np.uint8)
    boxes, crowd_boxes = [], []
    for number, (image, record) in enumerate(zip(images, records, strict=True)):
        top = middle_y if number >= 2 else middle_y - record.height
        left = middle_x if number % 2 else middle_x - record.width
        mosaic[top : top + record.height, left : left + record.width] = image
        offset = np.array([left, top, left, top], dtype=np.float32)
        boxes.append(record.boxes + offset)
        crowd_boxes.append(record.crowd_boxes + offset)
    return mosaic, replace(
        records[0],
        height=height,
        width=width,
        boxes=np.concatenate(boxes),
        classes=np.concatenate([record.classes for record in records]),
        crowd_boxes=np.concatenate(crowd_boxes),
        negative_classes=records[0].negative_classes[:0],
        not_exhaustive_classes=reduce(np.union1d, [record.not_exhaustive_classes for record in records]),
    )
