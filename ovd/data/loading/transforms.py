"""Resizing and augmentation of images together with their labels.

No other module imports albumentations. Its import takes seconds and is delayed until the evaluation transform is
built. The training transform does without it, to make as few passes over the pixels as possible.
"""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

from ovd.data.index import Labels
from ovd.data.loading.augmentation_options import AugmentationOptions
from ovd.data.loading.color_jitter import ColorChange
from ovd.data.loading.resample import resample
from ovd.shapes import Bool, Float32, UInt8

Pixels = UInt8[np.ndarray, "_ _ 3"]
"""RGB image with shape (height, width, 3)."""
Transform = Callable[[Pixels, Labels, int], tuple[Pixels, Labels]]
"""Pure function of an image, its labels and a seed, which returns the new image and its labels."""

MIN_VISIBLE_SHARE = 0.3
SMALLEST_TRAINED_PX = 2.0
ROUNDING_PX = 1e-3
"""Length in pixels by which a side may be under `SMALLEST_TRAINED_PX`, since float32 rounds its ends."""


@dataclass(frozen=True)
class TrainTransform:
    """Transform that resizes, flips, crops and recolors, with the seed as its only source of randomness.

    The longest side becomes `size` times a factor drawn from `scale`, in whole pixels. A side larger than `size` is
    cropped to it at a random position, so that the result is never larger than size x size; it is not padded. An object
    is dropped if the crop leaves less than 30 % of its area, or a side under 2 px. Crowd regions are clipped, and
    dropped only if nothing is left of them.

    Raises:
        ValueError: the size or a scale is not positive, or the smallest scale exceeds the largest.
    """

    size: int
    """Longest side in pixels at a factor of 1, and upper limit of the sides of the result."""
    scale: tuple[float, float]
    """Smallest and largest factor of `size`."""
    flip: float
    """Probability of a horizontal flip."""
    color: float
    """Strength of brightness, contrast and saturation jitter (factors 1 - color to 1 + color); the hue shifts by up to
    a quarter of it. 0 leaves colors unchanged."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"size {self.size} and scale {self.scale}: size must be above 0, and 0 < smallest <= largest"
            )

    def longest_side(self, seed: int) -> int:
        """Return the longest side, in pixels, that an image with this seed is resized to before it is cropped."""
        return self._draw_side_and_flip(random.Random(seed))[0]

    def __call__(self, pixels: Pixels, labels: Labels, seed: int) -> tuple[Pixels, Labels]:
        generator, py_random = np.random.default_rng(seed), random.Random(seed)
        side, is_flipped = self._draw_side_and_flip(py_random)
        height, width = pixels.shape[:2]
        resized_height, resized_width = _resized_sides(height, width, side)
        factor_y, factor_x = resized_height / height, resized_width / width
        kept_height, kept_width = min(resized_height, self.size), min(resized_width, self.size)
        # The crop starts at a whole pixel of the original image, so that it can be sliced before resizing.
        top = int(generator.integers(resized_height - kept_height + 1) / factor_y)
        left = int(generator.integers(resized_width - kept_width + 1) / factor_x)
        bottom = min(height, top + math.ceil(kept_height / factor_y) + 1)
        right = min(width, left + math.ceil(kept_width / factor_x) + 1)
        if is_flipped:
            part = cv2.flip(pixels[top:bottom, width - right : width - left], 1)
        else:
            part = pixels[top:bottom, left:right]

        steps: list[Callable[[Pixels], Pixels]] = [
            partial(resample, height=kept_height, width=kept_width, factor_y=factor_y, factor_x=factor_x)
        ]
        if self.color > 0:
            py_random.random()  # unused, see _draw_side_and_flip
            recolor = ColorChange.draw(self.color, generator, py_random).of
            steps.insert(0 if factor_x > 1 else 1, recolor)  # before or after resizing, wherever there are fewer pixels
        for step in steps:
            part = step(part)

        offsets, factors = np.array([left, top] * 2), np.array([factor_x, factor_y] * 2)

        def move(boxes: np.ndarray) -> np.ndarray:
            boxes = _clip(boxes, height, width)
            boxes = _mirror(boxes, width) if is_flipped else boxes
            return ((boxes - offsets) * factors).astype(np.float32)

        return part, _cropped(labels.map_boxes(move), kept_height, kept_width)

    def _draw_side_and_flip(self, py_random: random.Random) -> tuple[int, bool]:
        # The unused numbers are those that albumentations drew when it did this work, so that a seed still gives the
        # same sample.
        py_random.random()
        smallest, largest = (max(1, round(self.size * factor)) for factor in self.scale)
        return py_random.choice(range(smallest, largest + 1)), py_random.random() < self.flip


def augmenting_transform(options: AugmentationOptions, *, size: int) -> TrainTransform:
    """Build the training transform from the options of a config."""
    return TrainTransform(size=size, scale=options.scale, flip=options.flip, color=options.color)


def eval_transform(*, size: int) -> Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w 3"]]:
    """Return a function that resizes an image to a longest side of exactly `size`, up or down, at its aspect ratio.

    The other side is rounded to whole pixels, so boxes map back with separate factors for x (W / w) and y (H / h), see
    `ovd.boxes.rescale_boxes`.
    """
    A = _import_albumentations()
    resize = A.Compose([A.LongestMaxSize(max_size=size, area_for_downscale="image")])
    return lambda image: resize(image=image)["image"]


def _import_albumentations() -> Any:
    # Otherwise albumentations asks a package index for newer versions when it is imported.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def resize_labels(labels: Labels, before: tuple[int, int], after: tuple[int, int]) -> Labels:
    """Return the labels of an image that was resized from height and width `before` to `after`."""
    (height, width), (new_height, new_width) = before, after
    factors = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    return labels.map_boxes(lambda boxes: boxes * factors)


def _resized_sides(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width in whole pixels if the longest side becomes `side`."""
    factor = side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _cropped(labels: Labels, height: int, width: int) -> Labels:
    """Return the labels that remain in a crop to the upper left `height` x `width` pixels."""
    clipped = labels.map_boxes(partial(_clip, height=height, width=width))
    return clipped.select(objects=_is_visible(clipped.boxes, labels.boxes), crowds=_has_area(clipped.crowd_boxes))


def _is_visible(visible: Float32[np.ndarray, "R 4"], whole: Float32[np.ndarray, "R 4"]) -> Bool[np.ndarray, " R"]:
    sides = _sides(visible)
    share_is_enough = sides.prod(axis=1) >= MIN_VISIBLE_SHARE * _sides(whole).prod(axis=1)
    return share_is_enough & (sides >= SMALLEST_TRAINED_PX - ROUNDING_PX).all(axis=1)


def _has_area(boxes: Float32[np.ndarray, "R 4"]) -> Bool[np.ndarray, " R"]:
    return _sides(boxes).min(axis=1) > 0


def _clip(boxes: Float32[np.ndarray, "R 4"], height: int, width: int) -> Float32[np.ndarray, "R 4"]:
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))


def _mirror(boxes: Float32[np.ndarray, "R 4"], width: int) -> Float32[np.ndarray, "R 4"]:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _sides(boxes: Float32[np.ndarray, "R 4"]) -> Float32[np.ndarray, "R 2"]:
    """Return width and height of each box."""
    return boxes[:, 2:] - boxes[:, :2]
