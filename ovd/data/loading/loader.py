"""Loaders of training batches, and of batches for evaluation and inference.

A run resumed at step s loads exactly the batches of an uninterrupted run (order.py), with any number of worker
processes.
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
from ovd.data.loading.buckets import Shape, batches_by_padded_shape
from ovd.data.loading.dataset import DetectionDataset, ImageSource, LoadedSample
from ovd.data.loading.mosaic import Mosaics
from ovd.data.loading.order import DrawnSample, TrainOrder
from ovd.data.loading.packing import PackedBatch, pack_samples
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import Pixels, Transform, eval_transform, resize_labels
from ovd.data.loading.worker_deaths import defer_worker_deaths, raise_worker_deaths
from ovd.data.report import DataError
from ovd.fault import Fault
from ovd.structures import Batch

TIMEOUT_S = 300
"""Longest time in seconds that a worker may take for a batch."""


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
    """Return an iterator over the batches of the steps.

    A sample that cannot be read makes its batch smaller, possibly empty, and is named in `Batch.skipped`; the caller
    counts it (`DataReport.add_batch`). Neither `workers` nor the first step changes the content of a step's batch.

    Args:
        order: order of the source's images.
        workers: number of forked processes that load ahead; 0 loads in the calling process.
        part: (index, number of parts); load only this part of each batch, as one of several ranks.
        shapes: heights and widths that a batch may be padded to; the smallest that holds it is used.
        mosaics: turns some samples into mosaics with other images of the source.
        size_divisor: images are padded at the right and bottom to a multiple of it.
        pin_memory: whether workers return batches in page-locked memory, so that copies to a GPU overlap other work.

    Raises:
        ValueError: a batch cannot be divided into equal parts, or the index has no image folder.
        RuntimeError: a worker died or hung; the message gives the signal or the timeout, and the step that was awaited
            with its image ids.
    """
    assert order.num_images == len(source)
    number, num_parts = part
    if order.batch_size % num_parts:
        raise ValueError(
            f"a batch of {order.batch_size} cannot be divided among {num_parts} ranks; change one of the two numbers"
        )
    own = slice(number * order.batch_size // num_parts, (number + 1) * order.batch_size // num_parts)
    source.encoded(0)  # an index without an image folder fails here, not in a worker
    dataset = DetectionDataset(source, transform, mosaics)
    pack = partial(pack_samples, size_divisor=size_divisor, shapes=shapes)
    batches = _load(dataset, source, steps, lambda step: order.batch(step)[own], workers, pack, pin_memory)
    return (replace(batch, shapes=shapes) for batch in batches)


def mix_batches(detection: Iterator[Batch], pairs: Iterator[Batch]) -> Iterator[Batch]:
    """Join detection and pair batches step by step: detection data first, then pairs, padded to one size."""
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
            shapes=first.shapes,
            padded_pairs=(second.images.shape[2], second.images.shape[3]),
        )


@dataclass(frozen=True)
class LoaderOptions:
    """Loader options for evaluation and inference."""

    batch_size: int
    """Number of images per batch."""
    workers: int
    """Number of forked processes that load ahead; 0 loads in the calling process."""


class EvalLoader:
    """Loader of all images of an index, each once, with their original heights and widths.

    Images are resized to a longest side of `size`, their boxes with them. All images of a batch have the same padded
    shape, so that each is padded as if it were alone, and its detections do not depend on the others. Batches are in
    the order of the index as far as that allows.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        loading: LoaderOptions,
        *,
        size: int,
        size_divisor: int = 32,
        pin_memory: bool = False,
    ):
        """
        Args:
            pin_memory: as for `train_loader`.

        Raises:
            ValueError: the index has no image folder.
        """
        if len(index):
            index.encoded(0)
        self._index = index
        self._batches = batches_by_padded_shape(index.image_sizes, loading.batch_size, size=size, divisor=size_divisor)
        self._load = partial(
            image_loader, index, self._batches, size=size, workers=loading.workers, size_divisor=size_divisor,
            pin_memory=pin_memory,
        )  # fmt: skip

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Batch, Int[Tensor, "B 2"]]]:
        """Yield each batch with the original heights and widths of its images.

        Raises:
            DataError: an image is missing or cannot be used; a metric over the others would be a different metric.
            RuntimeError: as for `train_loader`.
        """
        for rows, loaded in zip(self._batches, self._load(), strict=True):
            for fault in loaded.skipped:
                raise DataError(fault.code, f"{fault.message}; evaluation needs every image of {self._index.path}")
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
    """Return an iterator over batches of the images at these positions.

    Images are resized to a longest side of `size`, their boxes with them. An image that cannot be read is named in
    `Batch.skipped`.

    Args:
        pin_memory: as for `train_loader`.

    Raises:
        RuntimeError: as for `train_loader`.
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
    """Batch sampler for torch's DataLoader that yields the drawn samples of each step."""

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
        # Silences warnings of more workers than cores (the user's choice) and of forks beside threads (usual on Linux).
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
        defer_worker_deaths()
    for step in steps:
        try:
            with raise_worker_deaths():
                packed = next(packed_batches)
        except RuntimeError as error:
            image_ids = [int(source.image_ids[image]) for image, _ in batch(step)]
            # torch reports that a worker "exited unexpectedly"; only the cause names the signal that killed it.
            reason = f"{error} ({error.__cause__})" if isinstance(error.__cause__, RuntimeError) else f"{error}"
            raise RuntimeError(f"loading step {step} (image ids {image_ids}) failed: {reason}") from error
        yield packed.batch()


def _start_worker(_worker: int) -> None:
    # A signal to the whole process group (timeout, a batch system) must reach only the trainer, which needs its workers
    # to finish the step.
    os.setpgid(0, 0)
    # Several threads per worker would compete for the cores, and OpenCV's thread pool does not survive a fork.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
