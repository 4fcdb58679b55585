"""Objects that are too small at the training size, so that the transform drops them every time."""

import math
from dataclasses import dataclass

import numpy as np

from ovd.data.index import AnnotationIndex
from ovd.data.loading.transforms import ROUNDING_PX, SMALLEST_TRAINED_PX
from ovd.data.report import DataError, DataReport
from ovd.shapes import Float64, Int64

_NUM_NAMED = 20


@dataclass(frozen=True)
class SampleSizes:
    """Sizes of the images in training samples."""

    size: int
    """Longest side of an image in pixels (`data.size`)."""
    largest_scale: float
    """Largest factor of the scale jitter (`data.scale`)."""
    tile: float = 1.0
    """Share of `size` that an image fills: 1, or less if all samples are mosaics."""


def count_small_objects(index: AnnotationIndex, report: DataReport, sizes: SampleSizes) -> None:
    """Count the objects with a side under 2 px even at the largest scale, which no sample can contain.

    Args:
        report: counts these objects, with the size that would keep each of them.

    Raises:
        DataError: F4 the set has objects, and all of them are left out.
    """
    size, largest_scale, tile = sizes.size, sizes.largest_scale, sizes.tile
    small = small_objects(index, sizes)
    if not len(small):
        return
    images = index.boxes.images_of_values()
    image_sizes = index.image_sizes[images].astype(np.float64)
    longest, sides = image_sizes.max(axis=1), _sides(index)
    # One pixel more than the exact proportion, since the shorter side of an image is rounded.
    sizes_that_keep = np.ceil((SMALLEST_TRAINED_PX * longest / sides.min(axis=1) + 1) / largest_scale) / tile

    def described(row: int) -> str:
        file = index.image_files[images[row]]
        return (
            f"{file}: {_text(sides[row])} px of {_text(image_sizes[row, ::-1])} px is under {SMALLEST_TRAINED_PX:g} px "
            f"at data.size={size}; data.size={math.ceil(sizes_that_keep[row])} keeps it"
        )

    if len(small) == len(sides):
        raise DataError(
            "F4",
            f"{index.path}: all {len(sides)} objects are under {SMALLEST_TRAINED_PX:g} px at data.size={size}, so "
            f"nothing can be learned; data.size={int(np.median(sizes_that_keep))} keeps half of them, "
            f"data.size={int(sizes_that_keep.max())} all; the first: {described(0)}",
        )
    report.count_left_out_at_size("F4", len(small), [described(row) for row in small[:_NUM_NAMED].tolist()])


def small_objects(index: AnnotationIndex, sizes: SampleSizes) -> Int64[np.ndarray, " K"]:
    """Return the rows of the objects that `count_small_objects` counts."""
    image_sizes = index.image_sizes[index.boxes.images_of_values()].astype(np.float64)
    largest_side = max(1, round(max(1, int(sizes.size * sizes.tile)) * sizes.largest_scale))
    resized = np.rint(image_sizes * (largest_side / image_sizes.max(axis=1, initial=1))[:, None])
    shown = _sides(index) * (np.maximum(resized, 1) / image_sizes)[:, ::-1]
    return np.flatnonzero(shown.min(axis=1, initial=np.inf) < SMALLEST_TRAINED_PX - ROUNDING_PX)


def _sides(index: AnnotationIndex) -> Float64[np.ndarray, "M 2"]:
    """Return width and height of every object."""
    return index.boxes.values[:, 2:].astype(np.float64) - index.boxes.values[:, :2]


def _text(sides: Float64[np.ndarray, "2"]) -> str:
    return " x ".join(f"{side:g}" for side in sides.round(2))
