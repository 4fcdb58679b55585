"""Inference with a detector: on an image, a batch of images, or a data set."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import EvalLoader, LoaderOptions
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import eval_transform
from ovd.distributed import pins_memory
from ovd.format_count import format_count
from ovd.model.crop_encoder import CropEncoder
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.last_result import LastResult
from ovd.model.postprocess import postprocess
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration
from ovd.model.similarity import TextClassifier
from ovd.precision import Compute, autocast, on_device
from ovd.structures import Detections, Predictions
from ovd.threshold import shown_threshold

MAX_PAIRS_TOGETHER, MAX_PAIRS_TOGETHER_ON_GPU = 2**22, 2**26
"""Maximum number of (point, query) pairs of images with their own queries that are post-processed together."""


@dataclass(frozen=True)
class ImageBatch:
    """A batch of padded images to detect in."""

    images: UInt8[Tensor, "B 3 H W"]
    """RGB images, padded at the right and bottom."""
    sizes: Int[Tensor, "B 2"]
    """Heights and widths before padding."""
    original_sizes: Int[Tensor, "B 2"]
    """Heights and widths before resizing."""

    def __len__(self) -> int:
        """B, the number of images."""
        return len(self.sizes)

    def of_images(self, rows: slice) -> "ImageBatch":
        """Return a part of the batch."""
        return ImageBatch(self.images[rows], self.sizes[rows], self.original_sizes[rows])

    def to(self, device: torch.device) -> "ImageBatch":
        """Move the batch to a device; from page-locked memory the images are copied asynchronously."""
        images = self.images.to(device, non_blocking=True)
        return ImageBatch(images, self.sizes.to(device), self.original_sizes.to(device))


@dataclass(frozen=True)
class ImageQueries:
    """Queries for some images of a batch."""

    images: slice
    queries: QueryTexts


@dataclass(eq=False, repr=False)
class BatchDetector(ABC):
    """Base class for detection in images, batches and data sets, with one detector (`Inference`) or with experts.

    Raises:
        ValueError: only one of `second_look` and `options.second_look` is given.
    """

    detector: Detector
    """Detector in eval mode, on the device to run on, and for speed in the memory format of the precision."""
    _: KW_ONLY
    size: int
    """Longest side in pixels that images are resized to."""
    options: DetectionOptions
    """Settings of post-processing."""
    low_precision: bool
    """Whether to use bf16 autocast."""
    second_look: CropEncoder | None = None
    """Encoder of image crops, on the detector's device; given if and only if `options.second_look` is set."""
    calibration: ScoreCalibration | None = None
    """Calibration of the detector. Its map to probabilities is used only if it was fitted with these options."""

    def __post_init__(self) -> None:
        if (self.second_look is None) != (self.options.second_look is None):
            raise ValueError("second_look and options.second_look go together; give both or neither")

    @property
    def threshold(self) -> float | None:
        """Recommended score threshold for reporting boxes; None if the calibration does not cover these options."""
        return None if self.calibration is None else self.calibration.threshold_for(self.options)

    @property
    def shown_threshold(self) -> float:
        """Score threshold for showing boxes: `threshold`, or the default for uncalibrated detectors."""
        return shown_threshold(self.threshold)

    @property
    def is_calibrated(self) -> bool:
        """Whether a score is the probability that the box is correct and has this name."""
        return self.threshold is not None

    @property
    def device(self) -> torch.device:
        """Device of the detector."""
        return self.detector.device

    @property
    def compute(self) -> Compute:
        """Device and precision that the detector runs with."""
        return Compute(self.device, self.low_precision)

    @abstractmethod
    def compile(self) -> None:
        """Compile pyramid and head with torch.compile; worthwhile for many images."""

    def detect(self, queries: QueryTexts, batch: ImageBatch) -> tuple[Detections, ...]:
        """Detect in a padded batch; the detections are on the CPU, with boxes in pixels of the original images.

        Norms average over the padding. An image therefore has the same detections as alone only in a batch of images
        with the same padded shape (`EvalLoader`).
        """
        return self._detect_groups([ImageQueries(slice(None), queries)], batch)

    def detect_each(self, queries: Sequence[QueryTexts], batch: ImageBatch) -> tuple[Detections, ...]:
        """Detect as `detect` does, with separate queries for each image; an image without queries is skipped.

        Raises:
            ValueError: there are not as many queries as images.
        """
        if len(queries) != len(batch):
            raise ValueError(
                f"queries for {format_count(len(queries), 'image')} are given, but the batch has {len(batch):,}; give "
                "one QueryTexts for each image"
            )
        groups = [ImageQueries(slice(row, row + 1), of_image) for row, of_image in enumerate(queries)]
        return self._detect_groups(groups, batch)

    @torch.no_grad()
    def _detect_groups(self, groups: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        """Detect in a batch, which may be empty; images without queries get no detections."""
        groups = [of_images for of_images in groups if len(of_images.queries) > 0]
        if not groups or len(batch) == 0:
            return (Detections.empty(),) * len(batch)
        return self._detect(groups, batch.to(self.device))

    @abstractmethod
    def _detect(self, groups: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        """Detect for at least one query of at least one image; tensors are on the detector's device."""

    def image(self, queries: QueryTexts, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Detect in one RGB image of any size; boxes are in pixels of this image."""
        resized = np.require(eval_transform(size=self.size)(image), requirements=["C", "W"])
        padded, sizes = pad_images([torch.from_numpy(resized).permute(2, 0, 1)], divisor=self.detector.size_divisor)
        return self.detect(queries, ImageBatch(padded, sizes, torch.tensor([image.shape[:2]])))[0]

    def dataset(
        self, queries: QueryTexts, index: AnnotationIndex, loading: LoaderOptions
    ) -> Iterator[tuple[int, Detections]]:
        """Yield image id and detections for every image of a data set, grouped by padded shape.

        Raises:
            DataError: as for `batches`.
        """
        for batch, original_sizes in self.batches(index, loading):
            found = self.detect(queries, ImageBatch(batch.images, batch.sizes, original_sizes))
            yield from zip(batch.image_ids, found, strict=True)

    def batches(self, index: AnnotationIndex, loading: LoaderOptions) -> EvalLoader:
        """Return a loader of all images of a data set, resized and padded, with their heights and widths before that.

        Raises:
            DataError: an image is missing or cannot be read; an evaluation never leaves one out.
        """
        return EvalLoader(
            index,
            loading,
            size=self.size,
            size_divisor=self.detector.size_divisor,
            pin_memory=pins_memory(self.device),
        )


@dataclass(eq=False, repr=False)
class Inference(BatchDetector):
    """Detection with a single detector; `dataclasses.replace` makes a changed copy."""

    _classifier: LastResult[TextClassifier] = field(default_factory=LastResult, init=False)
    _nearness_of_text: LastResult[Tensor] = field(default_factory=LastResult, init=False)

    def classifier(self, text: Float[Tensor, "C D"]) -> TextClassifier:
        """Return the classifier for text embeddings of unit length, corrected for the bias towards trained names.

        The last classifier is cached, because it depends on the texts alone and many batches share them.
        """
        sources = (text, *self.detector.classifier_parameters())
        return self._classifier.get_or_compute(sources, lambda: self._new_classifier(text))

    def _new_classifier(self, text: Float[Tensor, "C D"]) -> TextClassifier:
        classifier = self.detector.classifier(text)
        if self.calibration is None or self.calibration.name_bias == 0:
            return classifier
        penalty = self.calibration.name_bias * self._nearness(text, self.calibration)
        return replace(classifier, name_penalty=penalty.to(self.device))

    def _nearness(self, text: Float[Tensor, "C D"], calibration: ScoreCalibration) -> Float[Tensor, " C"]:
        """Return the nearness of texts to the trained names, cached for batches with the same texts."""
        return self._nearness_of_text.get_or_compute(
            (text, calibration.trained_text), lambda: calibration.nearness(text.cpu())
        )

    def compile(self) -> None:
        self.detector.compile_learned_path()

    @torch.no_grad()
    def predict(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> Predictions:
        """Run the detector on a padded batch; points that yield no box (`Points.are_unscored`) get the quality -inf.

        Args:
            images: RGB images, padded at the right and bottom, on the detector's device.
            sizes: heights and widths before padding, on the detector's device.
        """
        with on_device(self.device), self.compute.autocast():
            predictions = self.detector(images)
        return self.without_padding(predictions, images, sizes)

    def without_padding(
        self, predictions: Predictions, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]
    ) -> Predictions:
        """Set the quality logits of points in the padding (`Points.are_unscored`) to -inf, so that they yield no box.

        Args:
            images, sizes: as for `predict`.
        """
        # Points in the padding, or beyond the image border on a coarse level, are never trained.
        unscored = self.detector.points(images).are_unscored(sizes)
        return replace(predictions, quality=predictions.quality.masked_fill(unscored, -torch.inf))

    def _detect(self, groups: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        return tuple(self.detections(self.predict(batch.images, batch.sizes), batch, groups))

    def detections(
        self, predictions: Predictions, batch: ImageBatch, groups: Sequence[ImageQueries]
    ) -> list[Detections]:
        """Post-process predictions as `detect` does; the same predictions can be used with several vocabularies.

        Args:
            predictions, batch: predictions for the images of this batch, on the detector's device.
            groups: at least one, in the order of the images, each with at least one query; images in none get no
                detections.
        """
        found = [Detections.empty()] * len(batch)
        for together in self._processed_together(groups, predictions):
            rows = slice(together[0].images.start, together[-1].images.stop)
            queries = [group.queries for group in together]
            found[rows] = self._detections(predictions.of_images(rows), batch.of_images(rows), queries)
        return found

    def _processed_together(
        self, groups: Sequence[ImageQueries], predictions: Predictions
    ) -> Iterator[list[ImageQueries]]:
        """Yield the groups to post-process together: those of neighboring images, as long as they have few queries."""
        max_pairs = MAX_PAIRS_TOGETHER if self.device.type == "cpu" else MAX_PAIRS_TOGETHER_ON_GPU
        if self.options.prefilter is not None or self.options.second_look is not None:
            max_pairs = 0
        together: list[ImageQueries] = []
        for group in groups:
            if together:
                tried = [*together, group]
                num_pairs = len(tried) * predictions.boxes.shape[1] * max(len(each.queries) for each in tried)
                has_ensemble = any(each.queries.ensemble is not None for each in tried)
                if num_pairs > max_pairs or has_ensemble or together[-1].images.stop != group.images.start:
                    yield together
                    together = []
            together.append(group)
        yield together

    @torch.no_grad()
    def _detections(
        self, predictions: Predictions, batch: ImageBatch, queries: Sequence[QueryTexts]
    ) -> tuple[Detections, ...]:
        """Post-process predictions; the queries are those of all images, or of each of them, without an ensemble."""
        # Cosines are computed in float32, even if the caller is inside an autocast context.
        with on_device(self.device), autocast(self.device, False):
            # The calibration was fitted to the detector's own scores, so it does not apply to a score ensemble.
            if self.calibration is None or self.threshold is None or queries[0].ensemble is not None:
                return self._detect_uncalibrated(predictions, batch, queries, self.options)
            return self._detect_calibrated(self.calibration, predictions, batch, queries)

    def _detect_calibrated(
        self, calibration: ScoreCalibration, predictions: Predictions, batch: ImageBatch, queries: Sequence[QueryTexts]
    ) -> tuple[Detections, ...]:
        """Post-process predictions into detections whose scores are probabilities."""
        nearness, options = [self._nearness(each.text, calibration) for each in queries], self.options
        before_map = calibration.options_before_map(options, torch.cat(nearness))
        found = self._detect_uncalibrated(predictions, batch, queries, before_map)
        return tuple(
            _rescore(
                item,
                calibration.score_map(item.scores, of_queries[item.classes]),
                above=options.score_threshold,
                limit=options.max_detections,
            )
            for item, of_queries in zip(found, nearness * (len(found) // len(queries)), strict=True)
        )

    def _detect_uncalibrated(
        self, predictions: Predictions, batch: ImageBatch, queries: Sequence[QueryTexts], options: DetectionOptions
    ) -> tuple[Detections, ...]:
        """Post-process predictions into detections whose scores are not mapped to probabilities."""
        embed_crops = None if self.second_look is None else partial(self.second_look, batch.images, batch.sizes)
        return postprocess(
            predictions,
            [self.classifier(each.text) for each in queries],
            input_sizes=batch.sizes,
            original_sizes=batch.original_sizes,
            options=options,
            ensemble=queries[0].ensemble,
            embed_crops=embed_crops,
        )


def _rescore(found: Detections, scores: Float[Tensor, " K"], *, above: float, limit: int) -> Detections:
    """Rescore detections: at most `limit` of those with scores above `above`, best first."""
    scores, order = scores.sort(descending=True, stable=True)
    order = order[scores > above][:limit]
    return Detections(found.boxes[order], scores[: len(order)], found.classes[order])
