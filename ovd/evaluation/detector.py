"""Detection in a data set that is evaluated, with every class of its annotation file as a query."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from ovd.choices import Engine
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import LoaderOptions
from ovd.distributed import gather, on_any_rank, raise_on_all_ranks, rank, world_size
from ovd.engine.signals import Stopped, StopRequest
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.results import concatenate
from ovd.evaluation.run import build_box_evaluator
from ovd.model.query_texts import QueryTexts
from ovd.progress import progress
from ovd.structures import Detections


@runtime_checkable
class DatasetDetector(Protocol):
    """A detector that can be evaluated: a `BatchDetector`, or an exported detector."""

    @property
    def threshold(self) -> float | None: ...

    def dataset(
        self, queries: QueryTexts, index: AnnotationIndex, loading: LoaderOptions
    ) -> Iterator[tuple[int, Detections]]: ...


def detect_in_dataset(
    inference: DatasetDetector,
    queries: QueryTexts,
    index: AnnotationIndex,
    loading: LoaderOptions,
    *,
    engine: Engine,
    stop: StopRequest | None = None,
) -> BoxEvaluator:
    """Detect in every image of the data set and return an evaluator that has the detections.

    Each rank detects in its part of the images. The main process's evaluator has all results, in the index's order;
    those of other ranks are empty.

    Args:
        queries: one query per category of `index`, in its order.
        index: the data set, loaded with its truth.
        stop: a request to stop, after which every rank finishes its current image and stops.

    Raises:
        ValueError: the index has no truth.
        Stopped: a stop was requested.
    """
    category_ids = tuple(category.id for category in index.categories)
    if index.truth is None:
        raise ValueError(f"{index.path} was loaded without ground truth; load it with with_truth=True")
    evaluator = build_box_evaluator(index.truth, index.format, category_ids, engine=engine)
    own = index.take(np.arange(rank(), len(index), world_size()))
    stop = stop or StopRequest()
    found = stop.until_received(inference.dataset(queries, own, loading))
    with raise_on_all_ranks():
        for image_id, detections in progress(found, len(own), "detecting"):
            evaluator.update(image_id, detections)
    if on_any_rank(stop.received):
        raise Stopped
    parts = gather(evaluator.results())
    evaluator.clear()
    if parts:
        results = concatenate(parts)
        by_id = np.argsort(index.image_ids)
        positions = by_id[np.searchsorted(index.image_ids, results.image_ids, sorter=by_id)]
        evaluator.add_results(results.take(np.argsort(positions, kind="stable")), source="all ranks")
    return evaluator
