"""Inference with a base detector and experts: the shared layers run once, and each answers for its own queries.

Competition between names, suppression and the number of boxes per image run within one answerer, over its own queries.
So the base detector's answers are those that it would give alone, to the last bit.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovd.choices import SamePlace
from ovd.experts.merge import merge
from ovd.experts.names import ExpertNames, route
from ovd.inference import Inference
from ovd.model.postprocess import ScoreEnsemble
from ovd.model.shared_layers import SharedLayers
from ovd.precision import autocast
from ovd.structures import Detections, Predictions


@dataclass(frozen=True)
class Expert:
    """A detector of new names that shares a base detector's first layers."""

    fingerprint: str
    """Of its file; experts are asked in its order, so that the order in which they are given does not matter."""
    names: ExpertNames
    inference: Inference
    """Of the expert's detector."""
    shared: SharedLayers | None
    """The layers that are replayed in its own pass through the backbone; None if it has the base's features."""


class ExpertInference(Inference):
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
        super().__init__(
            base.detector,
            size=base.size,
            options=base.options,
            low_precision=base.low_precision,
            second_look=base.second_look,
            calibration=base.calibration,
        )
        self.experts = sorted(experts, key=lambda expert: expert.fingerprint)
        if len({expert.fingerprint for expert in experts}) < len(experts):
            raise ValueError("an expert is given twice; name each once")
        self.num_capped = 0
        """Detections so far that the merged lists had no room for (`max_detections`)."""
        self._answerers = [base, *(expert.inference for expert in self.experts)]
        self._same_place = same_place
        self._nearest = nearest
        self._routed: tuple[Tensor, list[Int[Tensor, " _"]]] | None = None

    def describe_experts(self) -> str:
        """The experts and how they are used, in words that change with any of it."""
        experts = ", ".join(expert.fingerprint[:16] for expert in self.experts)
        return f"experts sha256 {experts} (same place: {self._same_place}, nearest: {self._nearest})"

    def compile(self) -> None:
        for answerer in self._answerers:
            answerer.compile()

    @torch.no_grad()
    def detect(
        self,
        text: Float[Tensor, "C D"],
        images: UInt8[Tensor, "B 3 H W"],
        sizes: Int[Tensor, "B 2"],
        original_sizes: Int[Tensor, "B 2"],
        *,
        ensemble: ScoreEnsemble | None = None,
    ) -> tuple[Detections, ...]:
        images, sizes = images.to(self.device), sizes.to(self.device)
        asked = self._route(text)
        predictions = self._predict(images, sizes, [len(rows) > 0 for rows in asked])
        return self._answers(predictions, asked, text, sizes, original_sizes, images, ensemble)

    @torch.no_grad()
    def detect_each(
        self,
        texts: Sequence[Float[Tensor, "_ D"]],
        images: UInt8[Tensor, "B 3 H W"],
        sizes: Int[Tensor, "B 2"],
        original_sizes: Int[Tensor, "B 2"],
    ) -> tuple[Detections, ...]:
        images, sizes = images.to(self.device), sizes.to(self.device)
        routes = [self._route(text) for text in texts]
        is_asked = [any(len(rows) > 0 for rows in of_answerer) for of_answerer in zip(*routes, strict=True)]
        predictions = self._predict(images, sizes, is_asked)
        found: list[Detections] = []
        for row, (text, asked) in enumerate(zip(texts, routes, strict=True)):
            only = slice(row, row + 1)
            of_image = [None if item is None else item.of_images(only) for item in predictions]
            found += self._answers(of_image, asked, text, sizes[only], original_sizes[only], images[only], None)
        return tuple(found)

    def _route(self, text: Float[Tensor, "C D"]) -> list[Int[Tensor, " _"]]:
        """The rows that each answerer is asked for, the base detector first; computed once for batch after batch."""
        if self._routed is None or self._routed[0] is not text:
            names = [expert.names for expert in self.experts]
            self._routed = (text, route(text, names, nearest=self._nearest))
        return self._routed[1]

    def _predict(
        self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"], is_asked: Sequence[bool]
    ) -> list[Predictions | None]:
        """The predictions of those answerers that are asked; the layers that they share run once."""
        predictions: list[Predictions | None] = []
        shared = [expert.shared for expert, asked in zip(self.experts, is_asked[1:], strict=True) if asked]
        with ExitStack() as recordings:
            for layers in shared:
                if layers is not None:
                    recordings.enter_context(layers.recording())
            with autocast(images.device, self.low_precision):
                features = self.detector.features(images)
                for number, (answerer, asked) in enumerate(zip(self._answerers, is_asked, strict=True)):
                    if not asked:
                        predictions.append(None)
                        continue
                    has_own_layers = number > 0 and self.experts[number - 1].shared is not None
                    own = answerer.detector.features(images) if has_own_layers else features
                    predictions.append(answerer.detector.predict_from(own))
        return [None if item is None else self.without_padding(item, images, sizes) for item in predictions]

    def _answers(
        self,
        predictions: Sequence[Predictions | None],
        asked: Sequence[Int[Tensor, " _"]],
        text: Float[Tensor, "C D"],
        sizes: Int[Tensor, "B 2"],
        original_sizes: Int[Tensor, "B 2"],
        images: UInt8[Tensor, "B 3 H W"],
        ensemble: ScoreEnsemble | None,
    ) -> tuple[Detections, ...]:
        """The merged detections of each image."""
        answers = []
        for number, (answerer, of_batch, rows) in enumerate(zip(self._answerers, predictions, asked, strict=True)):
            if of_batch is None or len(rows) == 0:
                answers.append([Detections.empty()] * len(sizes))
                continue
            with_clip = None
            if ensemble is not None and number == 0:
                with_clip = replace(ensemble, weights=ensemble.weights[rows])
            found = answerer.detections(of_batch, text[rows], sizes, original_sizes, images=images, ensemble=with_clip)
            answers.append([replace(item, classes=rows[item.classes]) for item in found])
        return tuple(self._merge(base, experts) for base, *experts in zip(*answers, strict=True))

    def _merge(self, base: Detections, experts: Sequence[Detections]) -> Detections:
        found, num_capped = merge(
            base,
            experts,
            same_place=self._same_place,
            nms_iou=self.options.nms_iou,
            max_detections=self.options.max_detections,
        )
        self.num_capped += num_capped
        return found
