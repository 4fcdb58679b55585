"""LVIS box metrics under two protocols that must not be compared with each other.

Ordinary AP judges at most 300 detections per image, the official rule. Fixed AP (Dave et al., arXiv:2102.01066)
judges the best 10,000 detections of each class over the whole data set, however many of them share an image. Both are
federated: a detection counts only in images where its class is known to be present or absent, and an unmatched one is
ignored where the class was not annotated exhaustively.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import hotcoco
import numpy as np

from ovd.choices import Engine
from ovd.data.truth import Truth
from ovd.evaluation.engine_ids import with_exact_ids
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.groups import NAME_OF_FREQUENCY, group_mask
from ovd.evaluation.hotcoco_arrays import hotcoco_rows, hotcoco_truth
from ovd.evaluation.image_classes import ImageClassPairs
from ovd.evaluation.precision_recall import PrecisionRecall
from ovd.evaluation.report import Curve, Evaluation, ProtocolMetrics, class_rows
from ovd.evaluation.results import Results, limit_per_class, limit_per_image
from ovd.format_count import format_count
from ovd.root_logger import preserve_root_logger
from ovd.shapes import Bool

MAX_PER_IMAGE = 300


class LVISEvaluator(BoxEvaluator):
    """Evaluator of LVIS box AP, ordinary and fixed.

    Metrics: `AP AP50 AP75 APs APm APl APr APc APf AR@300 ARs@300 ARm@300 ARl@300` (ordinary) and `AP_fixed AP50_fixed
    ... APf_fixed`.

    Args:
        truth: true boxes of an LVIS file, v0.5 or v1.
        category_ids: category id of each vocabulary row, see `BoxEvaluator`.
        engine: "hotcoco", or "official" for the `lvis` package.
        max_per_class: maximum number of detections per class for fixed AP.

    Raises:
        ValueError: the truth has no federated labels, without which AP would silently change; an id in `category_ids`
            is unknown; or the package of the engine is not installed.
    """

    def __init__(
        self,
        truth: Truth,
        category_ids: tuple[int, ...],
        *,
        engine: Engine = "hotcoco",
        max_per_class: int = 10_000,
    ) -> None:
        if not truth.is_federated:
            raise ValueError(
                f"{truth.path} was not read as LVIS; without federated labels, LVIS metrics would be wrong"
            )
        super().__init__(truth, category_ids, engine)
        if engine == "official":
            _import_lvis()  # a missing package is an error now, not after detection
        self._run_engine = _ENGINES[engine]
        self._max_per_class = max_per_class
        self._groups = {
            letter: np.flatnonzero(group_mask(name, self.truth.categories))
            for letter, name in NAME_OF_FREQUENCY.items()
        }

    def evaluate(self) -> Evaluation:
        """Run the engine once per protocol, or once for both if they judge the same detections.

        Per-class rows and curves are those of ordinary AP.
        """
        results = self.results()
        capped_by_image = limit_per_image(results, MAX_PER_IMAGE)
        capped_by_class = limit_per_class(results, self._max_per_class)
        # lvis-api drops detections without area after its cap; hotcoco would judge them
        judged = [_with_area(capped_by_image)]
        if len(capped_by_image) < len(results) or len(capped_by_class) < len(results):
            judged.append(_with_area(capped_by_class))
        ordinary, *others = self._run_engine(*with_exact_ids(self.truth, judged))
        averages = self._average_precisions(ordinary)
        fixed_averages = self._average_precisions(others[0]) if others else averages
        return Evaluation(
            engine=self.engine,
            sections=(
                ProtocolMetrics(
                    f"LVIS box AP, ordinary, {MAX_PER_IMAGE} per image, federated",
                    {
                        **averages,
                        f"AR@{MAX_PER_IMAGE}": ordinary.average_recall(),
                        **{f"{name}@{MAX_PER_IMAGE}": recall for name, recall in ordinary.recalls_by_area().items()},
                    },
                ),
                ProtocolMetrics(
                    f"LVIS box AP, fixed, {self._max_per_class:,} per class over the data set, federated",
                    {f"{name}_fixed": value for name, value in fixed_averages.items()},
                ),
            ),
            notes=(
                self.note_of_count(results),
                f"ordinary AP leaves out {format_count(len(results) - len(capped_by_image), 'detection')} beyond an "
                f"image's best {MAX_PER_IMAGE}",
                f"fixed AP leaves out {format_count(len(results) - len(capped_by_class), 'detection')} beyond a "
                f"class's best {self._max_per_class:,}",
                *self._unusual(results),
            ),
            classes=class_rows(self.truth, ordinary, capped_by_image),
            curves=(
                Curve("all", ordinary.curve(iou_percent=50)),
                *(
                    Curve(name, ordinary.curve(iou_percent=50, categories=self._groups[letter]))
                    for letter, name in NAME_OF_FREQUENCY.items()
                ),
            ),
            class_precision=ordinary.class_curves(iou_percent=50),
        )

    def _average_precisions(self, curves: PrecisionRecall) -> dict[str, float]:
        return {
            **curves.average_precisions(),
            **{f"AP{letter}": curves.average_precision(categories=rows) for letter, rows in self._groups.items()},
        }

    def _unusual(self, results: Results) -> list[str]:
        """Return notes on missing frequencies, classes and areas, which a reader of the figures must know."""
        notes = []
        silent = sum(category.frequency is None for category in self.truth.categories)
        if silent:
            notes.append(f"{silent} of {len(self.truth.categories)} categories without a frequency: in none of r, c, f")
        num_boxes = self.truth.num_boxes_of_categories()
        notes += [
            f"no true box of a {name} class, so AP{letter} is -1"
            for letter, name in NAME_OF_FREQUENCY.items()
            if not num_boxes[self._groups[letter]].any()
        ]
        if self.truth.num_without_area:
            notes.append(f"{format_count(self.truth.num_without_area, 'true box', 'true boxes')} without area left out")
        without_area = len(results) - int(_have_area(results).sum())
        if without_area:
            notes.append(f"{format_count(without_area, 'detection')} without area not evaluated")
        return notes


def _with_area(results: Results) -> Results:
    have_area = _have_area(results)
    return results if have_area.all() else results.take(have_area)


def _have_area(results: Results) -> Bool[np.ndarray, " N"]:
    return results.boxes_xywh[:, 2] * results.boxes_xywh[:, 3] > 0


def _run_hotcoco(truth: Truth, judged: Sequence[Results]) -> list[PrecisionRecall]:
    """Compute the precision-recall curves of each set of detections.

    Detections of a class whose presence in the image is not known, which are most, are left out, since the engine
    would ignore them.
    """
    dataset, pairs = hotcoco_truth(truth), ImageClassPairs(truth)
    known = pairs.known()
    curves = []
    for results in judged:
        results = results.take(np.isin(pairs.numbers(results.image_ids, results.category_ids), known))
        detections = hotcoco.LVISResults(dataset, hotcoco_rows(results), max_dets=-1)
        evaluation = hotcoco.LVISEval(dataset, detections, "bbox")
        # The detections are capped already. By default the engine keeps the best 300 of each class in an image.
        parameters = evaluation.params  # a copy
        parameters.max_dets = [max(MAX_PER_IMAGE, len(results))]
        evaluation.params = parameters
        evaluation.evaluate()
        evaluation.accumulate()
        tables = evaluation.eval  # each access makes a copy
        assert tables is not None
        curves.append(PrecisionRecall(tables["precision"][..., 0], tables["recall"]))
    return curves


def _run_official(truth: Truth, judged: Sequence[Results]) -> list[PrecisionRecall]:
    """Compute the precision-recall curves of each set of detections."""
    lvis = _import_lvis()
    return [_run_lvis(lvis, truth, results) for results in judged]


def _run_lvis(lvis: ModuleType, truth: Truth, results: Results) -> PrecisionRecall:
    dataset = _index(lvis.LVIS, truth.as_dataset())
    columns = (results.image_ids, results.category_ids, results.boxes_xywh, results.scores)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    # The constructor of LVISResults fails on an empty list and caps the detections; LVISEval needs only the index.
    detections = _index(
        lvis.LVISResults,
        {
            **dataset.dataset,
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "score": score,
                }
                for number, (image_id, category_id, box, score) in enumerate(rows, start=1)
            ],
        },
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = lvis.LVISEval(dataset, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"][..., np.newaxis])


def _index(dataset_class: Any, dataset: dict[str, Any]) -> Any:
    """Make an lvis-api data set from memory without its constructor, which for `LVIS` reads a file."""
    indexed = dataset_class.__new__(dataset_class)
    indexed.logger = logging.getLogger("lvis")
    indexed.dataset = dataset
    indexed._create_index()
    return indexed


class _NumpyWithFloat(ModuleType):
    """numpy with `np.float`, which lvis 0.5.3 uses and numpy 1.24 removed; only `lvis.eval` gets this module."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@preserve_root_logger()
def _import_lvis() -> ModuleType:
    """Import the `lvis` package, only when it is needed, since it imports OpenCV and pyplot.

    Raises:
        ValueError: the package, or one that it imports, is not installed.
    """
    try:
        import lvis
        import lvis.eval
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the official engine needs a package that is not installed ({error}): pip install --no-deps lvis"
        ) from error
    lvis.eval.np = _NumpyWithFloat("numpy")
    logging.getLogger("lvis").setLevel(logging.ERROR)
    return lvis


_ENGINES = {"hotcoco": _run_hotcoco, "official": _run_official}
