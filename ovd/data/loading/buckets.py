"""Batches of images with similar shapes, which need less padding and have few distinct shapes."""

from typing import TypeVar

import numpy as np

from ovd.shapes import Int64

Shape = tuple[int, int]
"""Height and width in pixels."""
Length = TypeVar("Length", int, np.ndarray)


def round_up(length: Length, divisor: int) -> Length:
    """Round a length, or each length of an array, up to a multiple of `divisor`."""
    return -(-length // divisor) * divisor


def shape_groups(
    sizes: Int64[np.ndarray, "N 2"], num_groups: int, *, size: int, largest_scale: float = 1.0, divisor: int
) -> tuple[Int64[np.ndarray, " N"], tuple[Shape, ...]]:
    """Assign every image to a group of similar aspect ratio, and choose the padded shape of each group.

    Groups are ranges of aspect ratio, with limits that minimize the total number of pixels if each image is padded to
    the shape of its group.

    Args:
        sizes: height and width of the images.
        num_groups: largest number of groups.
        size: longest side that images are resized to.
        largest_scale: largest factor of the scale jitter on top of `size`; what is then longer than `size` is cropped.
        divisor: divisor of the padded sides.

    Returns:
        The group of each image, and the distinct shapes of the groups plus one that holds all images.
    """
    factors = largest_scale * size / sizes.max(axis=1, keepdims=True, initial=1)
    resized = np.ceil(sizes * factors).astype(np.int64).clip(max=size)
    padded = round_up(resized, divisor)
    shapes, shape_of_image, counts = np.unique(padded, axis=0, return_inverse=True, return_counts=True)
    by_ratio = np.argsort(shapes[:, 1] / np.maximum(shapes[:, 0], 1), kind="stable")
    group_of_rank, group_shapes = _cheapest_stretches(shapes[by_ratio], counts[by_ratio], num_groups)
    group_of_shape = np.empty(len(shapes), dtype=np.int64)
    group_of_shape[by_ratio] = group_of_rank
    holds_all = [(int(padded[:, 0].max()), int(padded[:, 1].max()))] if len(padded) else []
    return group_of_shape[shape_of_image.reshape(-1)], tuple(dict.fromkeys([*group_shapes, *holds_all]))


def _cheapest_stretches(
    shapes: Int64[np.ndarray, "U 2"], counts: Int64[np.ndarray, " U"], num_groups: int
) -> tuple[Int64[np.ndarray, " U"], tuple[Shape, ...]]:
    """Cut a sequence of shapes into at most `num_groups` stretches of least padded area, by dynamic programming."""
    num_shapes = len(shapes)
    areas = np.zeros((num_shapes, num_shapes + 1))
    for start in range(num_shapes):
        height = np.maximum.accumulate(shapes[start:, 0])
        width = np.maximum.accumulate(shapes[start:, 1])
        areas[start, start + 1 :] = height * width * np.cumsum(counts[start:])
    best = np.full((num_groups + 1, num_shapes + 1), np.inf)
    best[:, 0] = 0
    cut = np.zeros((num_groups + 1, num_shapes + 1), dtype=np.int64)
    for group in range(1, num_groups + 1):
        for end in range(1, num_shapes + 1):
            costs = best[group - 1, :end] + areas[:end, end]
            cut[group, end] = costs.argmin()
            best[group, end] = costs.min()
    groups = np.zeros(num_shapes, dtype=np.int64)
    found: list[Shape] = []
    group, end = num_groups, num_shapes
    while end > 0:
        start = int(cut[group, end])
        groups[start:end] = len(found)
        height, width = shapes[start:end].max(axis=0).tolist()
        found.append((height, width))
        group, end = group - 1, start
    return groups, tuple(found)


def padded_shape(height: int, width: int, shapes: tuple[Shape, ...]) -> Shape:
    """Return the shape of least area that holds `height` x `width`, or (height, width) if none does."""
    fitting = [shape for shape in shapes if shape[0] >= height and shape[1] >= width]
    return min(fitting, key=lambda shape: (shape[0] * shape[1], shape), default=(height, width))


def group_into_batches(
    order: Int64[np.ndarray, " L"],
    groups: Int64[np.ndarray, " L"],
    *,
    batch_size: int,
    offset: int,
    generator: np.random.Generator,
) -> Int64[np.ndarray, " L"]:
    """Reorder the samples of an epoch so that each batch has samples of one group, as far as the group sizes allow.

    Samples that do not fill a batch of their group are moved to the two ends of the epoch, where batches are shared
    with the neighboring epochs anyway.

    Args:
        order: shuffled samples of an epoch.
        groups: group of each sample in `order`.
        offset: position of the epoch's first sample in the stream of all epochs, which is cut into batches from 0 on.
    """
    by_group = order[np.argsort(groups, kind="stable")]
    counts = np.bincount(groups) if len(groups) else np.zeros(0, dtype=np.int64)
    batches: list[np.ndarray] = []
    rest: list[np.ndarray] = [order[:0]]
    start = 0
    for count in counts.tolist():
        whole = count // batch_size * batch_size
        batches += np.split(by_group[start : start + whole], range(batch_size, whole, batch_size)) if whole else []
        rest.append(by_group[start + whole : start + count])
        start += count
    generator.shuffle(batches)  # type: ignore[arg-type]  # a list is shuffled in place
    num_first = min(-offset % batch_size, len(order))
    while sum(map(len, rest)) < num_first:
        rest.append(batches.pop())
    loose = generator.permutation(np.concatenate(rest))
    return np.concatenate([loose[:num_first], *batches, loose[num_first:]])


def batches_by_padded_shape(
    sizes: Int64[np.ndarray, "N 2"],
    batch_size: int,
    *,
    size: int,
    divisor: int,
    only: Int64[np.ndarray, " M"] | None = None,
) -> list[list[int]]:
    """Group the positions of images into batches with the same height and width after resizing and padding.

    Args:
        sizes: height and width of each image.
        size: longest side that images are resized to.
        divisor: divisor of the padded sides.
        only: positions of the images to use; by default all.
    """
    taken = np.arange(len(sizes)) if only is None else only
    sizes = sizes[taken]
    resized = np.maximum(1, np.round(sizes * (size / sizes.max(axis=1, keepdims=True, initial=1)))).astype(np.int64)
    padded = round_up(resized, divisor)
    batches = []
    for shape in np.unique(padded, axis=0):
        alike = taken[(padded == shape).all(axis=1)].tolist()
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    return sorted(batches)  # in the order of the images, as far as possible
