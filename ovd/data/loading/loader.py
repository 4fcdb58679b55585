"""From an annotation index to batches, in an order that is a pure function of (seed, epoch, step).

No loader state is ever stored: a run resumed at step s draws the very batches that an uninterrupted one would have,
with any number of worker processes.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float64, Int, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovd.data.images.image_file import ImageError
from ovd.data.images.jpeg_pixels import jpeg_pixels
from ovd.data.images.read import decode_image
from ovd.data.index import AnnotationIndex, ImageRecord, Labels, images_per_class
from ovd.data.loading.buckets import Shape, batch_like_with_like, batches_of_like_shape
from ovd.data.loading.mosaic import Mosaics, join_tiles
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import Pixels, TrainTransform, Transform, eval_transform, resize_labels
from ovd.data.loading.worker_deaths import hold_back_deaths, raising_deaths
from ovd.data.report import DataError
from ovd.fault import Fault
from ovd.structures import Batch, Targets

TIMEOUT_S = 300
"""How long a batch may take in a worker."""
# Keep the chance of epochs and of samples apart: position 7 must not repeat the numbers of epoch 7.
_EPOCH_STREAM = 0
_SAMPLE_STREAM = 1
_BATCH_STREAM = 2

DrawnSample = tuple[int, int]
"""Position of an image in its source, and the seed of its augmentation."""


@runtime_checkable
class ImageSource(Protocol):
    """Images with what is known of them: an annotation index, or labelled image-text pairs."""

    @property
    def image_ids(self) -> Int64[np.ndarray, " N"]: ...

    def __len__(self) -> int: ...

    def record(self, image: int) -> ImageRecord: ...

    def encoded(self, image: int) -> Path | bytes:
        """The image's file, or its content."""


def repeat_factors(index: AnnotationIndex, repeat_threshold: float) -> Float64[np.ndarray, " N"]:
    """How often each image appears in an epoch on average, so that rare classes are seen more often.

    max over the image's classes of max(1, sqrt(repeat_threshold / f)), f being the share of this index's images with
    the class; 1 for images without objects (Gupta et al. 2019, LVIS, appendix B.2).
    """
    image_of_object = index.boxes.images_of_values()
    num_images_with = images_per_class(image_of_object, index.classes.values, len(index.categories))
    share = num_images_with / max(len(index), 1)
    class_factors = np.sqrt(np.maximum(repeat_threshold, share) / np.where(share > 0, share, 1))
    factors = np.ones(len(index))
    np.maximum.at(factors, image_of_object, class_factors[index.classes.values])
    return factors


def epoch_length(repeat: Float64[np.ndarray, " N"]) -> int:
    """Samples in an epoch: the same in each, so that a step's epoch is found by division."""
    # The tolerance keeps a sum of ones that rounding left at N + 1e-12 from becoming N + 1.
    return int(np.ceil(repeat.sum() - 1e-6))


def epoch_order(
    *, num_images: int, repeat: Float64[np.ndarray, " N"], seed: int, epoch: int
) -> Int64[np.ndarray, " L"]:
    """The images of one epoch, shuffled: image i floor(r_i) or ceil(r_i) times and r_i times on average.

    Factors are rounded by systematic sampling (one offset, then every whole step of the running sum): unlike rounding
    each by itself it gives all epochs the same length L, the sum of the factors rounded up. Here r_i are the factors
    stretched to that sum, by less than one part in N.
    """
    if len(repeat) != num_images or (repeat < 1).any():
        raise ValueError(f"{len(repeat)} repeat factors from {repeat.min(initial=1)}; expected {num_images} from 1")
    generator = np.random.default_rng((seed, _EPOCH_STREAM, epoch))
    length = epoch_length(repeat)
    running_sum = np.cumsum(repeat) * (length / max(repeat.sum(), 1))
    whole_steps = np.floor(running_sum + generator.random()).astype(np.int64)
    whole_steps[-1:] = length  # whatever the rounding of the sum
    return generator.permutation(np.repeat(np.arange(num_images), np.diff(whole_steps, prepend=0)))


class TrainOrder:
    """Which images, with which augmentation seeds, make up each training step.

    The epochs follow one another without a gap: a step's batch may cross from one into the next, and no sample is left
    out at an epoch's end.
    """

    def __init__(
        self,
        *,
        num_images: int,
        repeat: Float64[np.ndarray, " N"],
        seed: int,
        batch_size: int,
        first_sample: int = 0,
        groups: Int64[np.ndarray, " N"] | None = None,
    ):
        """
        Args:
            repeat: see `repeat_factors`.
            first_sample: where in the order step 0 stands, for a run that goes on with the data of an earlier one.
            groups: of the images; batches are of one group as far as can be (buckets.py).

        Raises:
            ValueError: no images, or batches of none.
        """
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"{num_images} images in batches of {batch_size}: expected at least one of each")
        self.num_images = num_images
        self.batch_size = batch_size
        self._repeat = repeat
        self._seed = seed
        self._first_sample = first_sample
        self._groups = groups
        self._length = epoch_length(repeat)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> list[DrawnSample]:
        """The samples of a step; the first call and each new epoch cost one shuffle, whatever the step."""
        first = self._first_sample + step * self.batch_size
        return [self._sample(position) for position in range(first, first + self.batch_size)]

    def _sample(self, position: int) -> DrawnSample:
        epoch, place = divmod(position, self._length)
        if epoch != self._epoch:
            self._order = epoch_order(num_images=self.num_images, repeat=self._repeat, seed=self._seed, epoch=epoch)
            if self._groups is not None:
                self._order = batch_like_with_like(
                    self._order,
                    self._groups[self._order],
                    batch_size=self.batch_size,
                    offset=epoch * self._length - self._first_sample,
                    generator=np.random.default_rng((self._seed, _BATCH_STREAM, epoch)),
                )
            self._epoch = epoch
        sample_seed = np.random.SeedSequence((self._seed, _SAMPLE_STREAM, position)).generate_state(1, np.uint64)
        return int(self._order[place]), int(sample_seed[0])


@dataclass(frozen=True)
class _LoadedSample:
    """An image after its transform, and what is known of it then."""

    image_id: int
    pixels: Pixels
    labels: Labels
    repaired: tuple[Fault, ...]


class DetectionDataset(Dataset):
    """Reads and transforms samples; one that cannot be read becomes its fault."""

    def __init__(self, source: ImageSource, transform: Transform, mosaics: Mosaics | None = None):
        self._source = source
        self._transform = transform
        self._mosaics = mosaics

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, drawn: DrawnSample) -> _LoadedSample | Fault:
        tiles = self._mosaics.tiles(*drawn) if self._mosaics is not None else []
        if self._mosaics is None or not tiles:
            return self._load(*drawn, self._transform)
        loaded = [self._load(*tile, self._mosaics.tile_transform) for tile in tiles]
        readable = [tile for tile in loaded if isinstance(tile, _LoadedSample)]
        if len(readable) < len(loaded):
            return next(fault for fault in loaded if isinstance(fault, Fault))
        pixels, labels = join_tiles([tile.pixels for tile in readable], [tile.labels for tile in readable])
        repaired = tuple(fault for tile in readable for fault in tile.repaired)
        return _LoadedSample(readable[0].image_id, pixels, labels, repaired)

    def _load(self, image: int, seed: int, transform: Transform) -> _LoadedSample | Fault:
        record = self._source.record(image)
        encoded = self._source.encoded(image)
        expected_size = (record.height, record.width) if record.height else None
        longest_side = transform.longest_side(seed) if isinstance(transform, TrainTransform) else None
        try:
            decoded = decode_image(
                encoded, expected_size=expected_size, longest_side=longest_side, decode_jpeg=jpeg_pixels
            )
        except ImageError as error:
            return error.fault if isinstance(encoded, Path) else error.fault.at(record.path)
        labels = record.labels
        if decoded.reduction > 1:
            labels = labels.moved(lambda boxes: boxes / decoded.reduction)
        pixels, labels = transform(decoded.pixels, labels, seed)
        repaired = tuple(fault.at(record.path) for fault in decoded.repairs())
        return _LoadedSample(record.id, pixels, labels, repaired)


def to_targets(labels: Labels) -> Targets:
    """An image's labels as the model takes them; copies, since those of an index are views of it."""
    return Targets(**{name: torch.tensor(array) for name, array in vars(labels).items()})


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
    pack = partial(_pack, size_divisor=size_divisor, shapes=shapes)
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

    pack = partial(_pack, size_divisor=size_divisor, shapes=())
    dataset = DetectionDataset(source, transform)
    return _load(dataset, source, range(len(batches)), drawn, workers, pack, pin_memory)


@dataclass(frozen=True)
class _PackedBatch:
    """A batch on its way from a worker: one tensor, since each tensor takes a file descriptor of the receiver."""

    images: UInt8[Tensor, "B 3 H W"]
    sizes: Int64[np.ndarray, "B 2"]
    image_ids: tuple[int, ...]
    labels: tuple[Labels, ...]
    skipped: tuple[Fault, ...]
    repaired: tuple[Fault, ...]

    def pin_memory(self) -> "_PackedBatch":
        """What torch's loader calls, in a thread of its own."""
        return replace(self, images=self.images.pin_memory())


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
    pack: Callable[[Sequence[_LoadedSample | Fault]], _PackedBatch],
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
        yield _unpack(packed)


def _start_worker(_worker: int) -> None:
    # A signal for the whole process group (timeout, a batch system) is for the trainer, which needs its workers to
    # finish the step.
    os.setpgid(0, 0)
    # Workers times threads would fight over the cores, and OpenCV's thread pool does not survive a fork.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _pack(samples: Sequence[_LoadedSample | Fault], *, size_divisor: int, shapes: tuple[Shape, ...]) -> _PackedBatch:
    loaded = [sample for sample in samples if isinstance(sample, _LoadedSample)]
    # A transform may return decoded pixels as they are, and those are not to be written to: torch wants a copy.
    pixels = [torch.from_numpy(np.require(sample.pixels, requirements="W")).permute(2, 0, 1) for sample in loaded]
    images, sizes = pad_images(pixels, divisor=size_divisor, shapes=shapes)
    return _PackedBatch(
        images=images,
        sizes=sizes.numpy(),
        image_ids=tuple(sample.image_id for sample in loaded),
        labels=tuple(sample.labels for sample in loaded),
        skipped=tuple(sample for sample in samples if isinstance(sample, Fault)),
        repaired=tuple(fault for sample in loaded for fault in sample.repaired),
    )


def _unpack(packed: _PackedBatch) -> Batch:
    return Batch.without_pairs(
        images=packed.images,
        sizes=torch.from_numpy(packed.sizes),
        targets=tuple(map(to_targets, packed.labels)),
        image_ids=packed.image_ids,
        skipped=packed.skipped,
        repaired=packed.repaired,
    )
