"""From a source of images to batches: those of a training, and those of images that are only looked at.

A run resumed at step s draws the very batches that an uninterrupted one would have (order.py), with any number of
worker processes.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ovd.data.index import AnnotationIndex, Labels
from ovd.data.loading.buckets import Shape, batches_of_like_shape
from ovd.data.loading.dataset import DetectionDataset, ImageSource, LoadedSample
from ovd.data.loading.mosaic import Mosaics
from ovd.data.loading.order import DrawnSample, TrainOrder
from ovd.data.loading.packing import PackedBatch, pack_samples
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import Pixels, Transform, eval_transform, resize_labels
from ovd.data.loading.worker_deaths import hold_back_deaths, raising_deaths
from ovd.data.report import DataError
from ovd.fault import Fault
from ovd.structures import Batch

TIMEOUT_S = 300
"""How long a batch may take in a worker."""


def train_loader(
    source: ImageSource,
    order: TrainOrder,
    transform: Transform,
    steps: range,
    *,
    workers: int,
    part: tuple[int, int] = (0, 1),
    shapes: tuple[Shape, ...] = (),
    mosaics: Mosaics | None = None,
    size_divisor: int = 32,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yields the batches of the steps.

    A sample that cannot be read makes its batch smaller, down to none, and is named in `Batch.skipped`; the caller
    counts (`DataReport.add_batch`). Neither `workers` nor the first step changes what a step's batch holds.

    Args:
        order: of the source's images.
        workers: processes (forked) that load ahead; 0 loads in the calling process.
        part: (number, of how many): load only this part of each batch, as one of several ranks.
        shapes: heights and widths that a batch is padded to, the smallest that holds it.
        mosaics: make mosaics of some samples, and of others of the source.
        size_divisor: images are padded at the right and bottom to a multiple of it.
        pin_memory: batches of workers come in page-locked memory, from which a GPU copies beside other work.

    Raises:
        ValueError: a batch that cannot be divided into equal parts, or an index without a folder of images.
        RuntimeError: a worker died or hung; the message has the signal or the time, the step that was waited for and
            its image ids.
    """
    assert order.num_images == len(source)
    number, num_parts = part
    if order.batch_size % num_parts:
        raise ValueError(
            f"a batch of {order.batch_size} images cannot be divided among {num_parts} ranks; change either"
        )
    own = slice(number * order.batch_size // num_parts, (number + 1) * order.batch_size // num_parts)
    source.encoded(0)  # an index without a folder of images stops here, not in a worker
    dataset = DetectionDataset(source, transform, mosaics)
    pack = partial(pack_samples, size_divisor=size_divisor, shapes=shapes)
    batches = _load(dataset, source, steps, lambda step: order.batch(step)[own], workers, pack, pin_memory)
    return (replace(batch, shapes=shapes) for batch in batches)


def mix_batches(detection: Iterator[Batch], pairs: Iterator[Batch]) -> Iterator[Batch]:
    """Joins the batches of both, step by step: detection data first, then image-text pairs, padded to one size."""
    for first, second in zip(detection, pairs, strict=True):
        images, _ = pad_images([*first.images, *second.images])
        yield Batch(
            images=images,
            sizes=torch.cat([first.sizes, second.sizes]),
            targets=first.targets + second.targets,
            image_ids=first.image_ids + second.image_ids,
            is_pair=torch.arange(len(images)) >= len(first.images),
            skipped=first.skipped + second.skipped,
            repaired=first.repaired + second.repaired,
        )


@dataclass(frozen=True)
class Loading:
    """How images that are only looked at are loaded."""

    batch_size: int
    """Images per batch."""
    workers: int
    """Processes (forked) that load ahead; 0 loads in the calling process."""


class EvalLoader:
    """Every image of an index once, with the images' original heights and widths.

    Images are resized to a longest side of `size`, their boxes with them. A batch has images of one padded shape, so
    that each is padded as if it were alone: what is detected in it does not depend on the others. Batches are in the
    order of the index as far as that allows.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        loading: Loading,
        *,
        size: int,
        size_divisor: int = 32,
        pin_memory: bool = False,
    ):
        """
        Args:
            pin_memory: as for `train_loader`.

        Raises:
            ValueError: an index without a folder of images.
        """
        if len(index):
            index.encoded(0)
        self._index = index
        self._batches = batches_of_like_shape(index.image_sizes, loading.batch_size, size=size, divisor=size_divisor)
        self._load = partial(
            image_loader, index, self._batches, size=size, workers=loading.workers, size_divisor=size_divisor,
            pin_memory=pin_memory,
        )  # fmt: skip

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Batch, Int[Tensor, "B 2"]]]:
        """
        Raises:
            DataError: an image is missing or cannot be used: a metric over the rest would not be the metric.
            RuntimeError: as `train_loader`.
        """
        for rows, loaded in zip(self._batches, self._load(), strict=True):
            for fault in loaded.skipped:
                raise DataError(fault.code, f"{fault.words}; evaluation needs every image of {self._index.path}")
            yield loaded, torch.from_numpy(self._index.image_sizes[rows])


def image_loader(
    source: ImageSource,
    batches: Sequence[Sequence[int]],
    *,
    size: int,
    workers: int,
    size_divisor: int = 32,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yields batches of the images at these positions, resized to a longest side of `size`, their boxes with them.

    An image that cannot be read is named in `Batch.skipped`.

    Args:
        pin_memory: as for `train_loader`.

    Raises:
        RuntimeError: as `train_loader`.
    """
    resize = eval_transform(size=size)

    def transform(pixels: Pixels, labels: Labels, _seed: int) -> tuple[Pixels, Labels]:
        resized = resize(pixels)
        return resized, resize_labels(labels, pixels.shape[:2], resized.shape[:2])

    def drawn(step: int) -> list[DrawnSample]:
        return [(image, 0) for image in batches[step]]

    pack = partial(pack_samples, size_divisor=size_divisor, shapes=())
    dataset = DetectionDataset(source, transform)
    return _load(dataset, source, range(len(batches)), drawn, workers, pack, pin_memory)


class _StepBatches:
    """The drawn samples of each step, as torch's batch sampler."""

    def __init__(self, steps: range, batch: Callable[[int], list[DrawnSample]]):
        self._steps = steps
        self._batch = batch

    def __iter__(self) -> Iterator[list[DrawnSample]]:
        return map(self._batch, self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def _load(
    dataset: DetectionDataset,
    source: ImageSource,
    steps: range,
    batch: Callable[[int], list[DrawnSample]],
    workers: int,
    pack: Callable[[Sequence[LoadedSample | Fault]], PackedBatch],
    pin_memory: bool,
) -> Iterator[Batch]:
    with warnings.catch_warnings():
        # More workers than cores, and forking beside threads: the user's choice, and how torch works on Linux.
        warnings.simplefilter("ignore")
        packed_batches = iter(
            DataLoader(
                dataset,
                batch_sampler=_StepBatches(steps, batch),  # type: ignore[arg-type]  # indices are pairs here
                collate_fn=pack,
                num_workers=workers,
                timeout=TIMEOUT_S if workers else 0,
                pin_memory=pin_memory and workers > 0,
                multiprocessing_context="fork" if workers else None,
                worker_init_fn=_start_worker,
            )
        )
    if workers:
        hold_back_deaths()
    for step in steps:
        try:
            with raising_deaths():
                packed = next(packed_batches)
        except RuntimeError as error:
            image_ids = [int(source.image_ids[image]) for image, _ in batch(step)]
            # torch says that a worker "exited unexpectedly", and in the cause which signal killed it.
            reason = f"{error} ({error.__cause__})" if isinstance(error.__cause__, RuntimeError) else f"{error}"
            raise RuntimeError(f"loading step {step} (image ids {image_ids}) failed: {reason}") from error
        yield packed.batch()


def _start_worker(_worker: int) -> None:
    # A signal for the whole process group (timeout, a batch system) is for the trainer, which needs its workers to
    # finish the step.
    os.setpgid(0, 0)
    # Workers times threads would fight over the cores, and OpenCV's thread pool does not survive a fork.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
