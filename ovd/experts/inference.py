"""Inference with a base detector and experts: the shared layers run once, and each answers for its own queries.

Competition between names, suppression and the number of boxes per image run within one answerer, over its own queries.
So the base detector's answers are those that it would give alone, to the last bit.
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
    """Of its file; experts are asked in its order, so that the order in which they are given does not matter."""
    names: ExpertNames
    inference: Inference
    """Of the expert's detector; the base detector itself if it learned names alone."""
    shared: SharedLayers | None
    """The layers that are replayed in its own pass through the backbone; None if it has the base's features."""


@dataclass(frozen=True)
class _OwnQueries:
    """The queries that one answerer, the base detector or an expert, answers."""

    rows: Int[Tensor, " c"]
    """Rows of the vocabulary."""
    queries: QueryTexts
    """What it detects with at these rows."""


class ExpertInference(BatchDetector):
    """A base detector with experts, in the place of the base detector's own inference.

    Its attributes are the base detector's. Scores are compared as they are: calibrate both (`train.calibration`), so
    that they are probabilities.
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
            base: of the base detector.
            experts: copies of its detector (`copy_sharing_layers`), at least one, in any order.
            same_place: what becomes of two answerers' boxes at one place (`merge`).
            nearest: whether experts answer queries that are near to their names (`route`).

        Raises:
            ValueError: an expert is given twice.
        """
        assert experts, "give at least one expert"
        super().__init__(**{field.name: getattr(base, field.name) for field in fields(BatchDetector)})
        self.experts = sorted(experts, key=lambda expert: expert.fingerprint)
        if len({expert.fingerprint for expert in experts}) < len(experts):
            raise ValueError("an expert is given twice; name each once")
        self.num_capped = 0
        """Detections so far that the merged lists had no room for (`max_detections`)."""
        self._base = base
        self._answerers = [base, *(expert.inference for expert in self.experts)]
        self._shared = [None, *(expert.shared for expert in self.experts)]
        """The layers that each answerer replays; None for the base detector, and for experts with its features."""
        self._base_answers_again = any(expert.inference.detector is base.detector for expert in self.experts)
        self._same_place = same_place
        self._nearest = nearest
        self._routed = LastResult[list[_OwnQueries]]()

    @property
    def is_calibrated(self) -> bool:
        """Whether the scores of the base detector and of all experts are probabilities."""
        return all(answerer.is_calibrated for answerer in self._answerers)

    def describe_experts(self) -> str:
        """The experts and how they are used, in words that change with any of it."""
        experts = ", ".join(expert.fingerprint[:16] for expert in self.experts)
        return f"experts sha256 {experts} (same place: {self._same_place}, nearest: {self._nearest})"

    def compile(self) -> None:
        for answerer in self._answerers:
            answerer.compile()

    def _detect(self, asked: Sequence[ImageQueries], batch: ImageBatch) -> tuple[Detections, ...]:
        routes = [self._route(of_images.queries) for of_images in asked]
        is_asked = [any(len(own.rows) > 0 for own in of_answerer) for of_answerer in zip(*routes, strict=True)]
        found = [[Detections.empty()] * len(batch) for _ in self._answerers]
        for number, predictions in self._predictions(batch, is_asked):
            for of_images, route_of_images in zip(asked, routes, strict=True):
                own, rows = route_of_images[number], of_images.images
                if len(own.rows) > 0:
                    detections = self._answerers[number].detections(
                        predictions.of_images(rows), batch.of_images(rows), own.queries
                    )
                    found[number][rows] = [replace(item, classes=own.rows[item.classes]) for item in detections]
        return tuple(self._merge(of_image) for of_image in zip(*found, strict=True))

    def _route(self, queries: QueryTexts) -> list[_OwnQueries]:
        """What each answerer is asked for, the base detector first; computed once for batch after batch.

        Experts use no ensemble.
        """
        text, ensemble = queries.text, queries.ensemble

        def compute() -> list[_OwnQueries]:
            names = [expert.names for expert in self.experts]
            base_rows, *expert_rows = route(text, names, nearest=self._nearest)
            own_text = (own.answering(text[rows]) for own, rows in zip(names, expert_rows, strict=True))
            return [
                _OwnQueries(base_rows, queries.take(base_rows)),
                *(_OwnQueries(rows, QueryTexts(own)) for rows, own in zip(expert_rows, own_text, strict=True)),
            ]

        return self._routed.of((text,) if ensemble is None else (text, ensemble.weights), compute)

    def _predictions(self, batch: ImageBatch, is_asked: Sequence[bool]) -> Iterator[tuple[int, Predictions]]:
        """Yield number and predictions of each answerer that is asked, one at a time; shared layers run once."""
        asked = [number for number, wanted in enumerate(is_asked) if wanted]
        with ExitStack() as recordings:
            for number in asked:
                if (layers := self._shared[number]) is not None:
                    recordings.enter_context(layers.recording())
            with on_device(self.device), self.compute.autocast():
                pixels = self.detector.normalize(batch.images)
                features = self.detector.backbone(pixels)
            base_predictions: Predictions | None = None  # which experts of names alone have, too
            for number in asked:
                detector = self._answerers[number].detector
                if detector is self.detector and base_predictions is not None:
                    yield number, base_predictions
                    continue
                with on_device(self.device), self.compute.autocast():
                    own = features if self._shared[number] is None else detector.backbone(pixels)
                    predictions = detector.predict_from(own, pixels)
                    predictions = self._base.without_padding(predictions, batch.images, batch.sizes)
                if detector is self.detector and self._base_answers_again:
                    base_predictions = predictions
                yield number, predictions

    def _merge(self, answers: Sequence[Detections]) -> Detections:
        """One image's answers of the base detector and of the experts in one list."""
        found, num_capped = merge(
            answers[0],
            answers[1:],
            same_place=self._same_place,
            nms_iou=self.options.nms_iou,
            max_detections=self.options.max_detections,
        )
        self.num_capped += num_capped
        return found
