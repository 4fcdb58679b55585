"""Resizing and augmenting images together with their labels. The one file that knows albumentations.

albumentations takes seconds to import, so it is imported when a transform is built.
"""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ovd.data.index import Labels
from ovd.shapes import Bool, Float32, UInt8

Pixels = UInt8[np.ndarray, "_ _ 3"]
"""An image: height, width, RGB."""
Transform = Callable[[Pixels, Labels, int], tuple[Pixels, Labels]]
"""A pure function of an image, what is known of it, and a seed."""

MIN_VISIBLE_SHARE = 0.3
MIN_SIDE_PX = 2.0
# The usual proportion of hue to brightness, contrast and saturation jitter: 0.1 to 0.4 (SimCLR, MoCo v2).
_HUE_SHARE = 0.25


def train_transform(*, size: int, scale: tuple[float, float], flip: float, color: float) -> Transform:
    """A transform that resizes, flips, crops and recolours; it reads no other source of chance than the seed.

    The longest side becomes `size` times a factor drawn from `scale`, in whole pixels; what is larger than `size` is
    cropped to it at random, so the result is never larger than size x size, and is not padded. Objects of which less
    than 30 % is left by the crop, or a side under 2 px, are dropped; crowd regions are only clipped.

    Args:
        size: longest side in pixels.
        scale: smallest and largest factor.
        flip: probability of a horizontal flip.
        color: strength of brightness, contrast and saturation jitter (factors 1 - color to 1 + color); the hue shifts
            by up to a quarter of it. 0 leaves colours alone.
    """
    if size < 1 or not 0 < scale[0] <= scale[1]:
        raise ValueError(f"size {size} and scale {scale}: expected a positive size and 0 < smallest <= largest")
    sides = range(max(1, round(size * scale[0])), max(1, round(size * scale[1])) + 1)
    A = _import_albumentations()
    resize_and_flip = A.Compose(
        [A.LongestMaxSize(max_size=list(sides), area_for_downscale="image"), A.HorizontalFlip(p=flip)],
        bbox_params=A.BboxParams(format="pascal_voc"),
    )
    jitter = A.ColorJitter(brightness=color, contrast=color, saturation=color, hue=color * _HUE_SHARE, p=1)
    recolor = A.Compose([jitter] if color > 0 else [])

    def transform(pixels: Pixels, labels: Labels, seed: int) -> tuple[Pixels, Labels]:
        # One pair of generators drawn from in turn. Compose's set_random_seed would give every step the same numbers:
        # large images would always be bright.
        generator, py_random = np.random.default_rng(seed), random.Random(seed)
        resize_and_flip.set_random_state(generator, py_random)
        recolor.set_random_state(generator, py_random)
        pixels, labels = _crop(*_move(resize_and_flip, pixels, labels), size, generator)
        return recolor(image=pixels)["image"], labels

    return transform


def eval_transform(*, size: int) -> Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w 3"]]:
    """A function that resizes an image, up or down, to a longest side of exactly `size`; the aspect ratio is kept.

    The other side is rounded to whole pixels, so boxes map back with one factor for x (W / w) and another for y
    (H / h): see ovd.boxes.rescale_boxes.
    """
    A = _import_albumentations()
    resize = A.Compose([A.LongestMaxSize(max_size=size, area_for_downscale="image")])
    return lambda image: resize(image=image)["image"]


def _import_albumentations() -> Any:
    # Without this it asks a package index for newer versions when it is imported.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def resize_labels(labels: Labels, before: tuple[int, int], after: tuple[int, int]) -> Labels:
    """The labels of an image that was resized, from these heights and widths."""
    (height, width), (new_height, new_width) = before, after
    factors = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    return labels.moved(lambda boxes: boxes * factors)


def _move(compose: Any, pixels: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
    """Applies geometry that keeps the whole image. albumentations raises on a box 0.01 px outside: clipped before."""
    height, width = pixels.shape[:2]
    num_objects = len(labels.boxes)
    boxes = _clip(np.concatenate([labels.boxes, labels.crowd_boxes]), height, width)
    rows = np.flatnonzero(_has_area(boxes))
    # The fifth column travels with its box and says which one it is.
    moved = compose(image=pixels, bboxes=np.concatenate([boxes[rows], rows[:, None]], axis=1))
    moved_boxes = np.asarray(moved["bboxes"], dtype=np.float64).reshape(-1, 5)
    row_after = moved_boxes[:, 4].astype(np.int64)
    is_object = row_after < num_objects
    moved_xyxy = moved_boxes[:, :4].astype(np.float32)
    return moved["image"], replace(
        labels,
        boxes=moved_xyxy[is_object],
        classes=labels.classes[row_after[is_object]],
        crowd_boxes=moved_xyxy[~is_object],
    )


def _crop(pixels: Pixels, labels: Labels, size: int, generator: np.random.Generator) -> tuple[Pixels, Labels]:
    """A random size x size part; a side that is shorter stays whole. (albumentations' RandomCrop would pad it.)"""
    height, width = pixels.shape[:2]
    top = int(generator.integers(max(height - size, 0) + 1))
    left = int(generator.integers(max(width - size, 0) + 1))
    # Contiguous, so that the full-size image does not live on behind a view.
    cropped = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    offset = np.array([left, top, left, top], dtype=np.float32)
    moved = labels.moved(lambda boxes: _clip(boxes - offset, *cropped.shape[:2]))
    return cropped, moved.select(objects=_is_visible(moved.boxes, labels.boxes), crowds=_has_area(moved.crowd_boxes))


def _is_visible(visible: Float32[np.ndarray, "R 4"], whole: Float32[np.ndarray, "R 4"]) -> Bool[np.ndarray, " R"]:
    sides = _sides(visible)
    share_is_enough = sides.prod(axis=1) >= MIN_VISIBLE_SHARE * _sides(whole).prod(axis=1)
    return share_is_enough & (sides >= MIN_SIDE_PX).all(axis=1)


def _has_area(boxes: Float32[np.ndarray, "R 4"]) -> Bool[np.ndarray, " R"]:
    return _sides(boxes).min(axis=1) > 0


def _clip(boxes: Float32[np.ndarray, "R 4"], height: int, width: int) -> Float32[np.ndarray, "R 4"]:
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))


def _sides(boxes: Float32[np.ndarray, "R 4"]) -> Float32[np.ndarray, "R 2"]:
    """Width and height."""
    return boxes[:, 2:] - boxes[:, :2]
