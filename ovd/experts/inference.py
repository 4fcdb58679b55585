"""Inference with a base detector and experts: shared layers run once, and each detector answers its own queries.

Competition between names, suppression and the limit of boxes per image apply to one detector (the base detector or an
expert's) and its own queries at a time. So the base detector's boxes are bit-identical to those that it gives alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

from jaxtyping import Int
from torch import Tensor

from ovd.choices import SamePlace
from ovd.experts.merge import merge
from ovd.experts.names import ExpertNames, route
from ovd.inference import BatchDetector, ImageBatch, ImageQueries, Inference
from ovd.model.last_result import LastResult
from ovd.model.query_texts import QueryTexts
from ovd.model.shared_layers import SharedLayers
from ovd.precision import on_device
from ovd.structures import Detections, Predictions


@dataclass(frozen=True)
class Expert:
    """A detector of new names that shares a base detector's first layers."""

    fingerprint: str
    """Hash of the expert's file. Experts are sorted by it, so that the order they are given in does not matter."""
    names: ExpertNames
    inference: Inference
    """Inference with the expert's detector, which is the base detector itself if the expert learned only names."""
    shared: SharedLayers | None
    """Layers whose outputs are replayed in the expert's own pass through the backbone; None if the expert uses the base
    detector's features."""


@dataclass(frozen=True)
class _RoutedQueries:
    """Queries that one detector, the base detector or an expert's, answers."""

    rows: Int[Tensor, " c"]
    """Rows of these queries in the vocabulary."""
    queries: QueryTexts
    """Texts that the detector uses at these rows."""


class ExpertInference(BatchDetector):
    """Inference of a base detector with experts, used in place of the base detector's own inference.

    Its attributes are those of the base detector. Scores are compared as they are, so calibrate the base detector and
    the experts (`train.calibration`), which makes their scores probabilities.
    """

    def __init__(
        self,
        base: Inference,
        experts: Sequence[Expert],
        *,
        same_place: SamePlace = "base_stays",
        nearest: bool = False,
    ):
        """
        Args:
            base: inference of the base detector.
            experts: at least one expert, in any order, whose detector is the base detector's or a copy of it
                (`copy_sharing_layers`).
            same_place: what happens to two detectors' boxes at one place (`merge`).
            nearest: whether experts also answer queries that are near to their names (`route`).

        Raises:
            ValueError: an expert is given twice.
        """
        assert experts, "give at least one expert"
        super().__init__(**{field.name: getattr(base, field.name) for field in fields(BatchDetector)})
        self.experts = sorted(experts, key=lambda expert: expert.fingerprint)
        if len({expert.fingerprint for expert in experts}) < len(experts):
            raise ValueError("an expert is given twice; give each only once")
        self.num_capped = 0
        """Number of detections cut off from the merged lists so far (`max_detections`)."""
        self._base = base
        self._inferences = [base, *(expert.inference for expert in self.experts)]
        self._shared = [None, *(expert.shared for expert in self.experts)]
        """Layers that each detector replays; None for the base detector, and for experts that use its features."""
        self._reuses_base_predictions = any(expert.inference.detector is base.detector for expert in self.experts)
        self._same_place = same_place
        self._nearest = nearest
        self._route_cache = LastResult[list[_RoutedQueries]]()

    @property
    def is_calibrated(self) -> bool:
        """Whether the scores of the base detector and of all experts are probabilities."""
        return all(inference.is_calibrated for inference in self._inferences)

    def describe_experts(self) -> str:
        """Describe the experts and how they are used; the text differs if any of this differs."""
        experts = ", ".join(expert.fingerprint[:16] for expert in self.experts)
        return f"experts sha256 {experts} (same place: {self._same_place}, nearest: {self._nearest})"

    def compile(self) -> None:
        for inference in self._inferences:
            inference.compile()

    def _detect(self, asked: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        routes = [self._route(of_images.queries) for of_images in asked]
        has_queries = [any(len(own.rows) > 0 for own in of_detector) for of_detector in zip(*routes, strict=True)]
        found = [[Detections.empty()] * len(batch) for _ in self._inferences]
        for number, predictions in self._predictions(batch, has_queries):
            own = [
                (of_images.images, route_of_images[number])
                for of_images, route_of_images in zip(asked, routes, strict=True)
                if len(route_of_images[number].rows) > 0
            ]
            groups = [ImageQueries(images, routed.queries) for images, routed in own]
            detected = self._inferences[number].detections(predictions, batch, groups)
            for images, routed in own:
                found[number][images] = [replace(item, classes=routed.rows[item.classes]) for item in detected[images]]
        return tuple(self._merge(of_image) for of_image in zip(*found, strict=True))

    def _route(self, queries: QueryTexts) -> list[_RoutedQueries]:
        """Return the queries of each detector, the base detector first; computed once for batches of the same queries.

        Experts use no ensemble.
        """
        text, ensemble = queries.text, queries.ensemble

        def compute() -> list[_RoutedQueries]:
            names = [expert.names for expert in self.experts]
            base_rows, *expert_rows = route(text, names, nearest=self._nearest)
            own_text = (own.detection_rows(text[rows]) for own, rows in zip(names, expert_rows, strict=True))
            return [
                _RoutedQueries(base_rows, queries.take(base_rows)),
                *(_RoutedQueries(rows, QueryTexts(own)) for rows, own in zip(expert_rows, own_text, strict=True)),
            ]

        return self._route_cache.get_or_compute((text,) if ensemble is None else (text, ensemble.weights), compute)

    def _predictions(self, batch: ImageBatch, has_queries: Sequence[bool]) -> Iterator[tuple[int, Predictions]]:
        """Yield the number and the predictions of each detector with queries, one at a time; shared layers run once."""
        active = [number for number, wanted in enumerate(has_queries) if wanted]
        with ExitStack() as recordings:
            for number in active:
                if (layers := self._shared[number]) is not None:
                    recordings.enter_context(layers.recording())
            with on_device(self.device), self.compute.autocast():
                pixels = self.detector.normalize(batch.images)
                features = self.detector.backbone(pixels)
            base_predictions: Predictions | None = None  # also those of experts that learned only names
            for number in active:
                detector = self._inferences[number].detector
                if detector is self.detector and base_predictions is not None:
                    yield number, base_predictions
                    continue
                with on_device(self.device), self.compute.autocast():
                    own = features if self._shared[number] is None else detector.backbone(pixels)
                    predictions = detector.predict_from(own, pixels)
                    predictions = self._base.without_padding(predictions, batch.images, batch.sizes)
                if detector is self.detector and self._reuses_base_predictions:
                    base_predictions = predictions
                yield number, predictions

    def _merge(self, detections: Sequence[Detections]) -> Detections:
        """Merge the detections of the base detector and of the experts in one image into one list."""
        found, num_capped = merge(
            detections[0],
            detections[1:],
            same_place=self._same_place,
            nms_iou=self.options.nms_iou,
            max_detections=self.options.max_detections,
        )
        self.num_capped += num_capped
        return found
