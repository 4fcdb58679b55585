"""Order of the training samples, a pure function of (seed, epoch, step), so that no state has to be stored."""

import numpy as np
from jaxtyping import Float64, Int64

from ovd.data.index import AnnotationIndex, images_per_class
from ovd.data.loading.buckets import group_into_batches

# Separate random streams of epochs and samples: position 7 must not repeat the numbers of epoch 7.
_EPOCH_STREAM = 0
_SAMPLE_STREAM = 1
_BATCH_STREAM = 2

DrawnSample = tuple[int, int]
"""Position of an image in its source, and the seed of its augmentation."""


def repeat_factors(index: AnnotationIndex, repeat_threshold: float) -> Float64[np.ndarray, " N"]:
    """Compute how often each image appears in an epoch on average, so that rare classes are seen more often.

    The factor is the maximum over the image's classes of max(1, sqrt(repeat_threshold / f)), where f is the share of
    this index's images with the class; it is 1 for images without objects (Gupta et al. 2019, LVIS, appendix B.2).
    """
    image_of_object = index.boxes.images_of_values()
    num_images_with = images_per_class(image_of_object, index.classes.values, len(index.categories))
    share = num_images_with / max(len(index), 1)
    class_factors = np.sqrt(np.maximum(repeat_threshold, share) / np.where(share > 0, share, 1))
    factors = np.ones(len(index))
    np.maximum.at(factors, image_of_object, class_factors[index.classes.values])
    return factors


def epoch_length(repeat: Float64[np.ndarray, " N"]) -> int:
    """Return the number of samples in an epoch, the same in each, so that a step's epoch is found by division."""
    # The tolerance keeps a sum of ones that rounding left at N + 1e-12 from becoming N + 1.
    return int(np.ceil(repeat.sum() - 1e-6))


def epoch_order(
    *, num_images: int, repeat: Float64[np.ndarray, " N"], seed: int, epoch: int
) -> Int64[np.ndarray, " L"]:
    """Return the shuffled images of one epoch: image i floor(r_i) or ceil(r_i) times, and r_i times on average.

    Factors are rounded by systematic sampling (one offset, then every whole step of the running sum). Unlike rounding
    each factor by itself, this gives all epochs the same length L, the sum of the factors rounded up. Here r_i are the
    factors stretched to that sum, by less than one part in N.
    """
    if len(repeat) != num_images or (repeat < 1).any():
        raise ValueError(f"{len(repeat)} repeat factors from {repeat.min(initial=1)}; expected {num_images} from 1")
    generator = np.random.default_rng((seed, _EPOCH_STREAM, epoch))
    length = epoch_length(repeat)
    running_sum = np.cumsum(repeat) * (length / max(repeat.sum(), 1))
    whole_steps = np.floor(running_sum + generator.random()).astype(np.int64)
    whole_steps[-1:] = length  # regardless of how the sum was rounded
    return generator.permutation(np.repeat(np.arange(num_images), np.diff(whole_steps, prepend=0)))


class TrainOrder:
    """The images and augmentation seeds of each training step.

    Epochs follow one another without a gap: a batch may cross from one epoch into the next, and no sample is left out
    at the end of an epoch.
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
            repeat: factors of `repeat_factors`.
            first_sample: position in the order where step 0 starts, for a run that continues the data of an earlier
                one.
            groups: group of each image; a batch has images of one group as far as possible (buckets.py).

        Raises:
            ValueError: there are no images, or the batch size is less than 1.
        """
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"{num_images} images in batches of {batch_size}: both must be at least 1")
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
        """Return the samples of a step; the first call and each new epoch cost one shuffle, whatever the step."""
        first = self._first_sample + step * self.batch_size
        return [self._sample(position) for position in range(first, first + self.batch_size)]

    def _sample(self, position: int) -> DrawnSample:
        epoch, place = divmod(position, self._length)
        if epoch != self._epoch:
            self._order = epoch_order(num_images=self.num_images, repeat=self._repeat, seed=self._seed, epoch=epoch)
            if self._groups is not None:
                self._order = group_into_batches(
                    self._order,
                    self._groups[self._order],
                    batch_size=self.batch_size,
                    offset=epoch * self._length - self._first_sample,
                    generator=np.random.default_rng((self._seed, _BATCH_STREAM, epoch)),
                )
            self._epoch = epoch
        sample_seed = np.random.SeedSequence((self._seed, _SAMPLE_STREAM, position)).generate_state(1, np.uint64)
        return int(self._order[place]), int(sample_seed[0])
