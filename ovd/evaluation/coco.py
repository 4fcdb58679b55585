"""COCO box metrics, for COCO and every other data set except LVIS: each class is judged in each image."""

import contextlib
import io
from collections.abc import Collection, Mapping

import hotcoco
import numpy as np

from ovd.choices import Engine
from ovd.data.truth import Truth
from ovd.evaluation.engine_ids import with_exact_ids
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.groups import Group, group_mask
from ovd.evaluation.hotcoco_arrays import hotcoco_rows, hotcoco_truth
from ovd.evaluation.precision_recall import PrecisionRecall
from ovd.evaluation.report import Curve, Evaluation, ProtocolMetrics, class_rows
from ovd.evaluation.results import Results

MAX_PER_IMAGE_AND_CLASS = (1, 10, 100)


class COCOEvaluator(BoxEvaluator):
    """Evaluator of COCO box AP.

    Metrics: `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`, and `AP50_NAME` for each group. Detections inside a
    crowd region that match no object are ignored.

    Args:
        truth: true boxes of a data set without federated labels; category ids may have gaps.
        category_ids: category id of each vocabulary row, see `BoxEvaluator`.
        engine: "hotcoco", or "official" for pycocotools.
        groups: class names of each named group. If given, only these classes are judged, and only in images with an
            object of one of them; detections of the file's other classes and images are counted and left out.

    Raises:
        ValueError: the truth has federated labels or lacks a class of a group, or an id in `category_ids` is unknown.
    """

    def __init__(
        self,
        truth: Truth,
        category_ids: tuple[int, ...],
        *,
        engine: Engine = "hotcoco",
        groups: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        if truth.is_federated:
            raise ValueError(
                f"{truth.path} was read as LVIS, which has no crowds; read it with another format for COCO metrics"
            )
        self._whole = truth
        if groups:
            truth = _only_classes(truth, set().union(*groups.values()))
        super().__init__(truth, category_ids, engine, groups)
        self._num_beyond = 0
        self._groups = {
            name: np.flatnonzero([category.name in members for category in truth.categories])
            for name, members in (groups or {}).items()
        }

    def add_results(self, results: Results, *, source: str) -> None:
        """Add detections as `BoxEvaluator.add_results` does, except those of classes and images that are not judged."""
        self._check_values(results, source)
        self._check_ids(results, source, self._whole)
        if self._whole is not self.truth:
            judged = np.isin(results.image_ids, self.truth.ids_of_images)
            judged &= np.isin(results.category_ids, self.truth.ids_of_categories)
            self._num_beyond += int((~judged).sum())
            results = results.take(judged)
        self._parts.append(results)

    def clear(self) -> None:
        super().clear()
        self._num_beyond = 0

    def evaluate(self) -> Evaluation:
        """Run the metric engine and return all figures."""
        results = self.results()
        curves = _curves(self.engine, self.truth, results)
        return Evaluation(
            engine=self.engine,
            sections=(
                ProtocolMetrics(
                    f"COCO box AP, {MAX_PER_IMAGE_AND_CLASS[-1]} per image and class",
                    {
                        **curves.average_precisions(),
                        **{
                            f"AR{limit}": curves.average_recall(limit=position)
                            for position, limit in enumerate(MAX_PER_IMAGE_AND_CLASS)
                        },
                        **curves.recalls_by_area(),
                        **{
                            f"AP50_{name}": curves.average_precision(iou_percent=50, categories=rows)
                            for name, rows in self._groups.items()
                        },
                    },
                ),
            ),
            notes=(
                self.note_of_count(results),
                *(
                    [f"{self._num_beyond} more in images or of classes that are not evaluated"]
                    if self._num_beyond
                    else ()
                ),
            ),
            classes=class_rows(self.truth, curves, results),
            curves=(
                Curve("IoU 0.50", curves.curve(iou_percent=50)),
                Curve("IoU 0.75", curves.curve(iou_percent=75)),
            ),
            class_precision=curves.class_curves(iou_percent=50),
        )


def exhaustive_metrics(truth: Truth, results: Results, *, engine: Engine = "hotcoco") -> ProtocolMetrics:
    """Compute COCO box AP by class frequency (`AP_exhaustive APr_exhaustive ...`) for a federated set.

    Unlike federated AP, it counts detections of every class in every image.

    Args:
        truth: the set's exhaustive truth, in which each object of each class has a box.
        results: detections of the truth's images and classes.
    """
    curves = _curves(engine, truth, results)
    groups: dict[str, Group] = {"AP": "all", "APr": "rare", "APc": "common", "APf": "frequent"}
    return ProtocolMetrics(
        f"COCO box AP on the exhaustive ground truth, {MAX_PER_IMAGE_AND_CLASS[-1]} per image and class",
        {
            f"{name}_exhaustive": curves.average_precision(
                categories=np.flatnonzero(group_mask(group, truth.categories))
            )
            for name, group in groups.items()
        },
    )


def _only_classes(truth: Truth, names: set[str]) -> Truth:
    ids = {category.name: category.id for category in truth.categories}
    missing = sorted(names - ids.keys())
    if missing:
        raise ValueError(f"{truth.path} lacks classes of the benchmark: {', '.join(missing[:20])}")
    category_ids = np.array([ids[name] for name in names], np.int64)
    return truth.restrict(np.unique(truth.image_ids[np.isin(truth.category_ids, category_ids)]), category_ids)


def _curves(engine: Engine, truth: Truth, results: Results) -> PrecisionRecall:
    exact, (judged,) = with_exact_ids(truth, [results])
    return _ENGINES[engine](exact, judged)


def _run_hotcoco(truth: Truth, results: Results) -> PrecisionRecall:
    dataset = hotcoco_truth(truth)
    evaluation = hotcoco.COCOeval(dataset, dataset.load_res(hotcoco_rows(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval  # each access makes a copy
    assert tables is not None
    return PrecisionRecall(tables["precision"][..., -1], tables["recall"])


def _run_official(truth: Truth, results: Results) -> PrecisionRecall:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth.as_dataset()
        dataset.createIndex()
        if len(results):
            detections = dataset.loadRes(hotcoco_rows(results))
        else:  # loadRes fails on an empty list, and COCOeval needs only the index
            detections = COCO()
            detections.dataset = {"images": [], "categories": [], "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(dataset, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"][..., -1], evaluation.eval["recall"])


_ENGINES = {"hotcoco": _run_hotcoco, "official": _run_official}
