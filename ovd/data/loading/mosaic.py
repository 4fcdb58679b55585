"""Four images as one training sample: more and smaller objects a step, in contexts of their own (YOLOv4,
arXiv:2004.10934)."""

from collections.abc import Sequence
from functools import partial, reduce

import numpy as np

from ovd.data.index import Labels
from ovd.data.loading.transforms import Pixels, Transform
from ovd.shapes import Float64

_MOSAIC_STREAM = 1  # apart from what a sample's seed draws in its transform


class Mosaics:
    """Which samples become mosaics, and of what; a function of the sample's seed."""

    def __init__(self, *, mosaic: float, weights: Float64[np.ndarray, " N"], tile_transform: Transform):
        """
        Args:
            mosaic: probability that a sample becomes one.
            weights: how often an image is drawn as another's neighbour, in proportion (repeat_factors).
            tile_transform: gives images of half a sample's side at most.
        """
        self._probability = mosaic
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


def join_tiles(images: Sequence[Pixels], labels: Sequence[Labels]) -> tuple[Pixels, Labels]:
    """Four images around the point where they meet, left to right and top to bottom, as tight as they go; what none
    covers is black.

    No class counts as verified to be absent: what one lacks, another may hold unsaid.

    Args:
        images: as they are now.
        labels: in pixels of the images.
    """
    heights, widths = [image.shape[0] for image in images], [image.shape[1] for image in images]
    middle_y, middle_x = max(heights[:2]), max(widths[::2])
    mosaic = np.zeros((middle_y + max(heights[2:]), middle_x + max(widths[1::2]), 3), dtype=np.uint8)
    moved = []
    for number, (image, known) in enumerate(zip(images, labels, strict=True)):
        height, width = image.shape[:2]
        top = middle_y if number >= 2 else middle_y - height
        left = middle_x if number % 2 else middle_x - width
        mosaic[top : top + height, left : left + width] = image
        offset = np.array([left, top, left, top], dtype=np.float32)
        moved.append(known.moved(partial(np.add, offset)))
    return mosaic, _together(moved)


def _together(labels: Sequence[Labels]) -> Labels:
    """The labels of the parts of one image, in its pixels."""
    return Labels(
        boxes=np.concatenate([part.boxes for part in labels]),
        classes=np.concatenate([part.classes for part in labels]),
        crowd_boxes=np.concatenate([part.crowd_boxes for part in labels]),
        negative_classes=np.zeros(0, np.int64),
        not_exhaustive_classes=reduce(np.union1d, [part.not_exhaustive_classes for part in labels]),
        image_texts=reduce(np.union1d, [part.image_texts for part in labels]),
    )
