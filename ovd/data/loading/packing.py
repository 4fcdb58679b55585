"""Packing of samples into a batch by a loader's worker, and unpacking in the process of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ovd.data.index import Labels
from ovd.data.loading.buckets import Shape
from ovd.data.loading.dataset import LoadedSample
from ovd.data.loading.padding import pad_images
from ovd.fault import Fault
from ovd.structures import Batch, Targets


def to_targets(labels: Labels) -> Targets:
    """Convert an image's labels to targets for the model; arrays are copied, since those of an index are views."""
    return Targets(**{name: torch.tensor(array) for name, array in vars(labels).items()})


@dataclass(frozen=True)
class PackedBatch:
    """A batch as a worker sends it.

    Only the images are a tensor, since each tensor takes a file descriptor of the receiving process.
    """

    images: UInt8[Tensor, "B 3 H W"]
    sizes: Int64[np.ndarray, "B 2"]
    image_ids: tuple[int, ...]
    labels: tuple[Labels, ...]
    skipped: tuple[Fault, ...]
    repaired: tuple[Fault, ...]

    def pin_memory(self) -> "PackedBatch":
        """Copy the images to page-locked memory; torch's DataLoader calls this in a thread of its own."""
        return replace(self, images=self.images.pin_memory())

    def batch(self) -> Batch:
        """Return the batch for the model; images and sizes share memory with this one, labels are copied."""
        return Batch.without_pairs(
            images=self.images,
            sizes=torch.from_numpy(self.sizes),
            targets=tuple(map(to_targets, self.labels)),
            image_ids=self.image_ids,
            skipped=self.skipped,
            repaired=self.repaired,
        )


def pack_samples(
    samples: Sequence[LoadedSample | Fault], *, size_divisor: int, shapes: tuple[Shape, ...]
) -> PackedBatch:
    """Pack the samples that could be read, padded to one shape (`pad_images`), and the faults of the others."""
    loaded = [sample for sample in samples if isinstance(sample, LoadedSample)]
    # A transform may return decoded pixels, which can be read-only; torch needs a writable copy.
    pixels = [torch.from_numpy(np.require(sample.pixels, requirements="W")).permute(2, 0, 1) for sample in loaded]
    images, sizes = pad_images(pixels, divisor=size_divisor, shapes=shapes)
    return PackedBatch(
        images=images,
        sizes=sizes.numpy(),
        image_ids=tuple(sample.image_id for sample in loaded),
        labels=tuple(sample.labels for sample in loaded),
        skipped=tuple(sample for sample in samples if isinstance(sample, Fault)),
        repaired=tuple(fault for sample in loaded for fault in sample.repaired),
    )
