"""Build the batches that a config trains on."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ovd.build.trained import stored_config
from ovd.config.training import TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.data.loading.buckets import shape_groups
from ovd.data.loading.dataset import ImageSource
from ovd.data.loading.loader import mix_batches, train_loader
from ovd.data.loading.mosaic import Mosaics
from ovd.data.loading.order import TrainOrder, repeat_factors
from ovd.data.loading.small_objects import SampleSizes, small_objects
from ovd.data.loading.transforms import augmenting_transform
from ovd.distributed import device_of_rank, pins_memory, rank, world_size
from ovd.engine import checkpoint
from ovd.engine.notes import SampleCounts
from ovd.selftrain.labeled_pairs import LabeledPairs
from ovd.shapes import Int64
from ovd.structures import Batch

PAIRS_SEED_OFFSET = 2**32
"""Offset of the pairs' seed, so that their order and augmentation differ from those of the detection data."""


def small_training_objects(config: TrainConfig, index: AnnotationIndex) -> Int64[np.ndarray, " K"]:
    """Return the rows of a training set's objects that are too small to be in any sample."""
    return small_objects(index, sample_sizes(config))


def sample_sizes(config: TrainConfig) -> SampleSizes:
    """Return the sizes of images in the samples that a config trains on."""
    # Tiles of mosaics are half as large, and data.mosaic=1 makes every sample a mosaic.
    tile = 0.5 if config.data.mosaic == 1 else 1.0
    return SampleSizes(config.data.size, config.data.scale[1], tile)


def samples_per_step(config: TrainConfig) -> SampleCounts:
    """Return the numbers of images and of pairs in a batch."""
    batch_size = config.train.batch_size
    if config.data.pairs is None:
        return SampleCounts(images=batch_size)
    num_paired = min(batch_size - 1, max(1, round(batch_size * config.data.pairs.share)))
    return SampleCounts(images=batch_size - num_paired, pairs=num_paired)


def samples_drawn(found: checkpoint.Checkpoint) -> SampleCounts:
    """Return the numbers of samples that a run and its earlier stages have drawn."""
    config = stored_config(found)
    first, per_step = found.notes.first_samples, samples_per_step(config)
    return SampleCounts(
        images=first.images + found.step * per_step.images, pairs=first.pairs + found.step * per_step.pairs
    )


def training_batches(
    config: TrainConfig,
    index: AnnotationIndex,
    pairs: LabeledPairs | None = None,
    *,
    first_samples: SampleCounts,
    size_divisor: int,
) -> Callable[[int], Iterator[Batch]]:
    """Return a function that yields the batches from a step on; with pairs, each has the configured share of them.

    Args:
        first_samples: samples that earlier stages have drawn; this stage continues the order after them.
        size_divisor: number that divides both sides of the detector's input images.
    """
    data = config.data
    transform = augmenting_transform(data, size=data.size)
    seed, per_step = config.train.seed, samples_per_step(config)
    repeat = repeat_factors(index, data.repeat_threshold)
    groups, loader_options = None, dict[str, Any]()
    if data.shape_groups > 1:
        groups, shapes = shape_groups(
            index.image_sizes, data.shape_groups, size=data.size, largest_scale=data.scale[1], divisor=size_divisor
        )
        loader_options = {"shapes": shapes}
    if data.mosaic:
        tile_transform = augmenting_transform(data, size=max(1, data.size // 2))
        loader_options = {"mosaics": Mosaics(mosaic=data.mosaic, weights=repeat, tile_transform=tile_transform)}

    order = TrainOrder(
        num_images=len(index),
        repeat=repeat,
        seed=seed,
        batch_size=per_step.images,
        first_sample=first_samples.images,
        groups=groups,
    )

    def load(source: ImageSource, order: TrainOrder, start: int, **more: Any) -> Iterator[Batch]:
        steps, part = range(start, config.train.steps), (rank(), world_size())
        return train_loader(
            source, order, transform, steps, workers=data.workers, part=part, size_divisor=size_divisor, **more
        )

    if pairs is None:
        pin_memory = pins_memory(device_of_rank(config.train.device))
        return lambda start: load(index, order, start, pin_memory=pin_memory, **loader_options)
    order_of_pairs = TrainOrder(
        num_images=len(pairs),
        repeat=np.ones(len(pairs)),
        seed=seed + PAIRS_SEED_OFFSET,
        batch_size=per_step.pairs,
        first_sample=first_samples.pairs,
    )

    def batches_from(start: int) -> Iterator[Batch]:
        # Not in pinned memory, since both parts are copied into a new tensor.
        return mix_batches(load(index, order, start, **loader_options), load(pairs, order_of_pairs, start))

    return batches_from
