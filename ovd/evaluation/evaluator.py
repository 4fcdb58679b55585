"""Base class of the box evaluators, which collects detections and refuses those that make figures meaningless."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ovd.choices import Engine
from ovd.data.box_arrays import to_xywh
from ovd.data.truth import Truth
from ovd.evaluation.report import Evaluation
from ovd.evaluation.results import Results, concatenate
from ovd.format_count import format_count
from ovd.shapes import Bool

if TYPE_CHECKING:  # imports torch, which the evaluation of a results file does not need
    import ovd.structures


MAX_BOX_PX = 1e12
"""Limit that the coordinates and sides of a box stay below; areas of much larger boxes cannot be computed."""


class BoxEvaluator(ABC):
    """Evaluator of the detections in an annotation file's images.

    An image that is never added counts as an image without detections.

    Args:
        truth: the true boxes of the annotation file.
        category_ids: the file's category id of each row of the detector's vocabulary. Categories of the file that no
            row maps to are evaluated, too: their boxes count as missed.
        engine: name of the package that computes the metrics.
        groups: class names of each group of a benchmark.

    Raises:
        ValueError: `category_ids` holds an id that the annotation file does not have, or it has no categories.
    """

    def __init__(
        self,
        truth: Truth,
        category_ids: tuple[int, ...],
        engine: Engine,
        groups: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        if not truth.categories:
            raise ValueError(f"{truth.path} has no categories to evaluate; add the list of its classes")
        self.truth = truth
        self.engine = engine
        self.named_groups = groups
        self._category_ids = np.array(category_ids, np.int64)
        self._pending_image_ids = {image.id for image in truth.images}
        self._parts: list[Results] = []
        unknown = np.setdiff1d(self._category_ids, truth.ids_of_categories)
        if len(unknown):
            raise ValueError(f"category_ids: {truth.path} has no categories {unknown[:20].tolist()}")

    def update(self, image_id: int, detections: "ovd.structures.Detections") -> None:
        """Add the detections of one image, in any order, in pixels of the original image.

        Raises:
            ValueError: the image was added before or is not in the annotation file, a class is outside the
                vocabulary, or a score or box is invalid, as in `add_results`; names the image and the record.
        """
        source = f"detections of image {image_id}"
        if image_id not in self._pending_image_ids:
            raise ValueError(f"{source}: the image was added twice, or is not in {self.truth.path}")
        classes = detections.classes.detach().cpu().numpy().astype(np.int64)
        outside = np.flatnonzero((classes < 0) | (classes >= len(self._category_ids)))
        if len(outside):
            raise ValueError(
                f"{source}: record {outside[0]}: class {classes[outside[0]]} is outside the vocabulary's "
                f"{format_count(len(self._category_ids), 'row')}"
            )
        boxes = detections.boxes.detach().cpu().numpy().astype(np.float64)
        results = Results(
            image_ids=np.full(len(classes), image_id, np.int64),
            category_ids=self._category_ids[classes],
            boxes_xywh=to_xywh(boxes),
            scores=detections.scores.detach().cpu().numpy().astype(np.float64),
        )
        self._check_values(results, source)
        self._parts.append(results)  # the ids are known; to search for them takes time that grows with the data set
        self._pending_image_ids.remove(image_id)

    def add_results(self, results: Results, *, source: str) -> None:
        """Add detections of any images, from a results file or from another process's evaluator.

        Args:
            source: name of these detections in error messages, such as the file's path.

        Raises:
            ValueError: a score or box is not finite, a box is too large or has a negative side, or an image or category
                is not in the annotation file; names `source` and the first such record.
        """
        self._check_values(results, source)
        self._check_ids(results, source, self.truth)
        self._parts.append(results)

    def clear(self) -> None:
        """Remove all detections, as if none had been added."""
        self._parts = []
        self._pending_image_ids = {image.id for image in self.truth.images}

    def results(self) -> Results:
        """Return all detections added so far, uncapped, in the order in which they were added."""
        self._parts = [concatenate(self._parts)]
        return self._parts[0]

    def note_of_count(self, results: Results) -> str:
        """Return a note with the number of detections, and of the truth's images that have any."""
        num_with = int(np.isin(self.truth.ids_of_images, results.image_ids).sum())
        images = format_count(len(self.truth.images), "image")
        return f"{format_count(len(results), 'detection')} in {num_with} of {images}"

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Compute all figures with their protocols, the per-class rows and the curves."""

    def compute(self) -> dict[str, float]:
        """Compute only the metrics, 0 to 1; -1 where the annotation file has no true box for a metric."""
        return self.evaluate().metrics

    def _check_values(self, results: Results, source: str) -> None:
        """Check the scores and boxes; raise a ValueError as described in `add_results`."""
        _, _, width, height = results.boxes_xywh.T
        largest = np.maximum.reduce(np.abs(results.boxes_xywh).T)  # NaN if one of the four numbers is NaN
        self._refuse(~np.isfinite(results.scores), "the score is not finite", results, source)
        self._refuse(~np.isfinite(largest), "the box is not finite", results, source)
        self._refuse(largest >= MAX_BOX_PX, "the box is larger than any image", results, source)
        self._refuse((width < 0) | (height < 0), "the box has a negative side", results, source)

    def _check_ids(self, results: Results, source: str, truth: Truth) -> None:
        """Check that the images and categories are in the truth; raise a ValueError as described in `add_results`."""
        self._refuse(~np.isin(results.image_ids, truth.ids_of_images), "unknown image_id", results, source)
        self._refuse(~np.isin(results.category_ids, truth.ids_of_categories), "unknown category_id", results, source)

    def _refuse(self, bad: Bool[np.ndarray, " N"], reason: str, results: Results, source: str) -> None:
        if bad.any():
            record = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{source}: record {record} (image_id {results.image_ids[record]}, "
                f"category_id {results.category_ids[record]}, score {results.scores[record]}, "
                f"bbox {results.boxes_xywh[record].tolist()}): {reason}; "
                f"{format_count(int(bad.sum()), 'such record')}; compared with {self.truth.path}"
            )
