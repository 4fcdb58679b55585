"""The images that an alignment trains on, and the images that are held out to measure it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ovd.alignment.images import UnlabeledImages
from ovd.config.alignment import AlignConfig
from ovd.data.loading.loader import image_loader, train_loader
from ovd.data.loading.order import TrainOrder
from ovd.data.loading.transforms import augmenting_transform
from ovd.data.report import DataReport
from ovd.distributed import (
    device_of_rank,
    pins_memory,
    rank,
    world_size,
)
from ovd.structures import Batch

MIN_IMAGES_TO_HOLD_OUT = 100
"""Minimum number of images from which some are held out; a smaller set is trained on as a whole."""


@dataclass(frozen=True)
class AlignmentData:
    """The batches of an alignment."""

    batches_from: Callable[[int], Iterator[Batch]]
    """Function that loads the batches from a step on; they depend only on the step."""
    held_out: Callable[[], Iterator[Batch]]
    """Function that loads batches of the images that are not trained on; for a small set, of training images."""
    num_images: int
    """Number of images trained on."""
    num_held_out: int
    """Number of images not trained on."""
    report: DataReport
    """Counts of the images that were used and left out."""


def alignment_data(
    images: UnlabeledImages, config: AlignConfig, report: DataReport, *, size_divisor: int
) -> AlignmentData:
    """Split the images into those to train on and those to measure on, and load this rank's part of their batches.

    Args:
        size_divisor: divisor of the padded image sides.

    Raises:
        ValueError: the batch size cannot be divided among the ranks.
    """
    data, train = config.data, config.train
    num_held_out = min(train.held_out, len(images) // 10) if len(images) >= MIN_IMAGES_TO_HOLD_OUT else 0
    is_held_out = np.zeros(len(images), dtype=bool)
    is_held_out[np.linspace(0, len(images) - 1, num_held_out).round().astype(np.int64)] = True
    trained = images.take(np.flatnonzero(~is_held_out))
    measured = images.take(np.flatnonzero(is_held_out)) if num_held_out else images
    augment = augmenting_transform(data, size=data.size)
    pin_memory = pins_memory(device_of_rank(train.device))
    order = TrainOrder(
        num_images=len(trained), repeat=np.ones(len(trained)), seed=train.seed, batch_size=train.batch_size
    )

    def load_trained(start: int) -> Iterator[Batch]:
        return train_loader(
            trained,
            order,
            augment,
            range(start, train.steps),
            workers=data.workers,
            part=(rank(), world_size()),
            size_divisor=size_divisor,
            pin_memory=pin_memory,
        )

    def load_measured() -> Iterator[Batch]:
        positions = range(min(len(measured), train.held_out))
        batches = [positions[first : first + train.batch_size] for first in positions[:: train.batch_size]]
        return image_loader(
            measured,
            [batch[rank() :: world_size()] for batch in batches],
            size=data.size,
            workers=data.workers,
            size_divisor=size_divisor,
            pin_memory=pin_memory,
        )

    return AlignmentData(
        load_trained,
        load_measured,
        num_images=len(trained),
        num_held_out=num_held_out,
        report=report,
    )
