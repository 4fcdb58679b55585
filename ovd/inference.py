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
from ovd.data.loading.loader import EvalLoader, Loading
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import eval_transform
from ovd.distributed import pins_memory
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


@dataclass(frozen=True)
class ImageBatch:
    """Padded images to detect in."""

    images: UInt8[Tensor, "B 3 H W"]
    """Padded at the right and bottom."""
    sizes: Int[Tensor, "B 2"]
    """Heights and widths before padding."""
    original_sizes: Int[Tensor, "B 2"]
    """Heights and widths before resizing."""

    def __len__(self) -> int:
        """B, the number of images."""
        return len(self.sizes)

    def of_images(self, rows: slice) -> "ImageBatch":
        """A part of the batch."""
        return ImageBatch(self.images[rows], self.sizes[rows], self.original_sizes[rows])

    def to(self, device: torch.device) -> "ImageBatch":
        """The batch on a device; from page-locked memory it is copied beside what the device does."""
        images = self.images.to(device, non_blocking=True)
        return ImageBatch(images, self.sizes.to(device), self.original_sizes.to(device))


@dataclass(frozen=True)
class ImageQueries:
    """The queries of some images of a batch."""

    images: slice
    queries: QueryTexts


@dataclass(eq=False, repr=False)
class BatchDetector(ABC):
    """What detects in images, batches and data sets: a detector alone (`Inference`), or one with experts.

    Raises:
        ValueError: only one of `second_look` and `options.second_look` is given.
    """

    detector: Detector
    """In eval mode, on the device to run on, best in the precision's memory format."""
    _: KW_ONLY
    size: int
    """Longest side in pixels that images are resized to."""
    options: DetectionOptions
    """Settings of post-processing."""
    low_precision: bool
    """Whether to use bf16 autocast."""
    second_look: CropEncoder | None = None
    """Encodes crops, on the detector's device; exactly with `options.second_look`."""
    calibration: ScoreCalibration | None = None
    """Of the detector; its map is used if it was fitted with these options."""

    def __post_init__(self) -> None:
        if (self.second_look is None) != (self.options.second_look is None):
            raise ValueError("second_look and options.second_look go together; give both or neither")

    @property
    def threshold(self) -> float | None:
        """The score above which boxes are best reported; None if it is not known for these options."""
        return None if self.calibration is None else self.calibration.threshold_for(self.options)

    @property
    def shown_threshold(self) -> float:
        """`threshold`, or for want of it a usual one."""
        return shown_threshold(self.threshold)

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are probabilities of a box of this name being there."""
        return self.threshold is not None

    @property
    def device(self) -> torch.device:
        """Device that the detector runs on."""
        return self.detector.device

    @property
    def compute(self) -> Compute:
        """Where the detector runs, and in which precision."""
        return Compute(self.device, self.low_precision)

    @abstractmethod
    def compile(self) -> None:
        """Compile pyramid and head; worthwhile for many images."""

    def detect(self, queries: QueryTexts, batch: ImageBatch) -> tuple[Detections, ...]:
        """Detections in a padded batch, in pixels of the original images, on the CPU.

        Norms average over the padding, so that an image is found the same as alone only in a batch of images of its own
        padded shape (`EvalLoader`).
        """
        return self._detect_any([ImageQueries(slice(None), queries)], batch)

    def detect_each(self, queries: Sequence[QueryTexts], batch: ImageBatch) -> tuple[Detections, ...]:
        """As `detect`, with classes of its own for each image, none for an image to pass over."""
        asked = [ImageQueries(slice(row, row + 1), of_image) for row, of_image in enumerate(queries)]
        return self._detect_any(asked, batch)

    @torch.no_grad()
    def _detect_any(self, asked: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        """Detections in each image of a batch, which may be empty; nothing in images without a query."""
        asked = [of_images for of_images in asked if len(of_images.queries) > 0]
        if not asked or len(batch) == 0:
            return (Detections.empty(),) * len(batch)
        return self._detect(asked, batch.to(self.device))

    @abstractmethod
    def _detect(self, asked: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        """`_detect_any` for at least one query of at least one image; tensors are on the detector's device."""

    def image(self, queries: QueryTexts, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Detections in one RGB image of any size, in pixels of this image."""
        resized = np.require(eval_transform(size=self.size)(image), requirements=["C", "W"])
        padded, sizes = pad_images([torch.from_numpy(resized).permute(2, 0, 1)], divisor=self.detector.size_divisor)
        return self.detect(queries, ImageBatch(padded, sizes, torch.tensor([image.shape[:2]])))[0]

    def dataset(
        self, queries: QueryTexts, index: AnnotationIndex, loading: Loading
    ) -> Iterator[tuple[int, Detections]]:
        """Yield image id and detections of every image of a data set, those of one padded shape together.

        Raises:
            DataError: as for `batches`.
        """
        for batch, original_sizes in self.batches(index, loading):
            found = self.detect(queries, ImageBatch(batch.images, batch.sizes, original_sizes))
            yield from zip(batch.image_ids, found, strict=True)

    def batches(self, index: AnnotationIndex, loading: Loading) -> EvalLoader:
        """Batches of every image of a data set as the detector takes it, and heights and widths before that.

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
    """One detector alone; `dataclasses.replace` makes a changed copy."""

    _classifier: LastResult[TextClassifier] = field(default_factory=LastResult, init=False)
    _nearness_of_text: LastResult[Tensor] = field(default_factory=LastResult, init=False)

    def classifier(self, text: Float[Tensor, "C D"]) -> TextClassifier:
        """The classifier of these unit rows, corrected for the bias towards trained names.

        It is kept for batch after batch with the same texts, since it holds what depends on them alone.
        """
        sources = (text, *self.detector.classifier_parameters())
        return self._classifier.of(sources, lambda: self._new_classifier(text))

    def _new_classifier(self, text: Float[Tensor, "C D"]) -> TextClassifier:
        classifier = self.detector.classifier(text)
        if self.calibration is None or self.calibration.name_bias == 0:
            return classifier
        penalty = self.calibration.name_bias * self._nearness(text, self.calibration)
        return replace(classifier, name_penalty=penalty.to(self.device))

    def _nearness(self, text: Float[Tensor, "C D"], calibration: ScoreCalibration) -> Float[Tensor, " C"]:
        """Nearness of texts to the trained ones, computed once for batch after batch with the same texts."""
        return self._nearness_of_text.of((text, calibration.trained_text), lambda: calibration.nearness(text.cpu()))

    def compile(self) -> None:
        self.detector.compile_learned_path()

    @torch.no_grad()
    def predict(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> Predictions:
        """Predictions for a padded batch; no box at points in the padding.

        Args:
            images: padded at the right and bottom, on the detector's device.
            sizes: height and width before padding, on the detector's device.
        """
        with on_device(self.device), self.compute.autocast():
            predictions = self.detector(images)
        return self.without_padding(predictions, images, sizes)

    def without_padding(
        self, predictions: Predictions, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]
    ) -> Predictions:
        """The predictions with no box at points in the padding.

        Args:
            images, sizes: as for `predict`.
        """
        # Points in the padding, and beyond the border on a coarse level, are never trained.
        outside = self.detector.points(images).in_padding(sizes)
        return replace(predictions, quality=predictions.quality.masked_fill(outside, -torch.inf))

    def _detect(self, asked: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        found = [Detections.empty()] * len(batch)
        predictions = self.predict(batch.images, batch.sizes)
        for of_images in asked:
            rows = of_images.images
            found[rows] = self.detections(predictions.of_images(rows), batch.of_images(rows), of_images.queries)
        return tuple(found)

    @torch.no_grad()
    def detections(self, predictions: Predictions, batch: ImageBatch, queries: QueryTexts) -> tuple[Detections, ...]:
        """Post-process predictions as `detect` does; the same ones may be used with several vocabularies.

        Args:
            predictions, batch: of the same images, on the detector's device.
            queries: at least one.
        """
        # Cosines are float32's, whatever context the caller is in.
        with on_device(self.device), autocast(self.device, False):
            # Fitted to the detector alone, without CLIP's scores.
            if self.calibration is None or self.threshold is None or queries.ensemble is not None:
                return self._uncalibrated(predictions, batch, queries, self.options)
            return self._calibrated(self.calibration, predictions, batch, queries)

    def _calibrated(
        self, calibration: ScoreCalibration, predictions: Predictions, batch: ImageBatch, queries: QueryTexts
    ) -> tuple[Detections, ...]:
        """The detections with scores that are probabilities."""
        nearness, options = self._nearness(queries.text, calibration), self.options
        found = self._uncalibrated(predictions, batch, queries, calibration.options_before(options, nearness))
        return tuple(
            _mapped(
                item,
                calibration.score_map(item.scores, nearness[item.classes]),
                above=options.score_threshold,
                limit=options.max_detections,
            )
            for item in found
        )

    def _uncalibrated(
        self, predictions: Predictions, batch: ImageBatch, queries: QueryTexts, options: DetectionOptions
    ) -> tuple[Detections, ...]:
        """The detections, on the CPU, with scores that are not mapped to probabilities."""
        look = None if self.second_look is None else partial(self.second_look, batch.images, batch.sizes)
        found = postprocess(
            predictions,
            self.classifier(queries.text),
            input_sizes=batch.sizes,
            original_sizes=batch.original_sizes,
            options=options,
            ensemble=queries.ensemble,
            look=look,
        )
        return tuple(Detections(item.boxes.cpu(), item.scores.cpu(), item.classes.cpu()) for item in found)


def _mapped(found: Detections, scores: Float[Tensor, " K"], *, above: float, limit: int) -> Detections:
    """The best detections by these scores, best first, as far as they score more than this."""
    scores, order = scores.sort(descending=True, stable=True)
    order = order[scores > above][:limit]
    return Detections(found.boxes[order], scores[: len(order)], found.classes[order])
