"""Mosaics of four images as one training sample (YOLOv4, arXiv:2004.10934).

A step then has more and smaller objects, each in its own context.
"""

from collections.abc import Sequence
from functools import partial, reduce

import numpy as np

from ovd.data.index import Labels
from ovd.data.loading.transforms import Pixels, Transform
from ovd.shapes import Float64

_MOSAIC_STREAM = 1  # separate from the random numbers that a sample's seed draws in its transform


class Mosaics:
    """Choice of the samples that become mosaics, and of their images, as a function of the sample's seed."""

    def __init__(self, *, mosaic: float, weights: Float64[np.ndarray, " N"], tile_transform: Transform):
        """
        Args:
            mosaic: probability that a sample becomes a mosaic.
            weights: relative frequency at which each image is drawn into mosaics of others (repeat_factors).
            tile_transform: transform whose images have at most half a sample's side.
        """
        self._probability = mosaic
        self._running_sum = np.cumsum(weights)
        self.tile_transform = tile_transform

    def tiles(self, image: int, seed: int) -> list[tuple[int, int]]:
        """Return position and seed of the four images of a mosaic, `image` first; empty if the sample is no mosaic."""
        generator = np.random.default_rng((seed, _MOSAIC_STREAM))
        if generator.random() >= self._probability:
            return []
        drawn = np.searchsorted(self._running_sum, generator.random(3) * self._running_sum[-1], side="right")
        seeds = generator.integers(2**63, size=4).tolist()
        return list(zip([image, *drawn.tolist()], seeds, strict=True))


def join_tiles(images: Sequence[Pixels], labels: Sequence[Labels]) -> tuple[Pixels, Labels]:
    """Join four images and their labels around the point where the images meet, left to right and top to bottom.

    The mosaic is as small as the images allow; pixels that no image covers are black. No class counts as verified to be
    absent, since a class that is absent from one image may be present in another without a label.

    Args:
        images: transformed images.
        labels: labels of the images, in pixels of each image.
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
        moved.append(known.map_boxes(partial(np.add, offset)))
    return mosaic, _together(moved)


def _together(labels: Sequence[Labels]) -> Labels:
    """Join the labels of the parts of one image, which are in pixels of the whole image."""
    return Labels(
        boxes=np.concatenate([part.boxes for part in labels]),
        classes=np.concatenate([part.classes for part in labels]),
        crowd_boxes=np.concatenate([part.crowd_boxes for part in labels]),
        negative_classes=np.zeros(0, np.int64),
        not_exhaustive_classes=reduce(np.union1d, [part.not_exhaustive_classes for part in labels]),
        image_texts=reduce(np.union1d, [part.image_texts for part in labels]),
    )
