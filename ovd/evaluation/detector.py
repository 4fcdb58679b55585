"""Evaluate a detector on a data set with a vocabulary of its own: every class of the annotation file is asked for."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ovd.choices import Engine
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import Loading
from ovd.distributed import failing_together, gather_on_main, rank, world_size
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.results import concatenate
from ovd.evaluation.run import box_evaluator
from ovd.model.pair_scores import ScoreEnsemble
from ovd.progress import progress
from ovd.structures import Detections


@runtime_checkable
class DetectsInDataSets(Protocol):
    """What is evaluated: `ovd.inference.Inference`, or an exported detector."""

    @property
    def threshold(self) -> float | None: ...

    def dataset(
        self,
        text: Float[Tensor, "C D"],
        index: AnnotationIndex,
        loading: Loading,
        *,
        ensemble: ScoreEnsemble | None = None,
    ) -> Iterator[tuple[int, Detections]]: ...


def evaluate_detector(
    inference: DetectsInDataSets,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    loading: Loading,
    *,
    engine: Engine,
    ensemble: ScoreEnsemble | None = None,
) -> BoxEvaluator:
    """Detect in every image of the data set; the evaluator returned computes on demand.

    Each rank detects in its part of the images. The main process's evaluator has all results, in the index's order;
    those of other ranks are empty.

    Args:
        text: one unit row per category of `index`, in its order.
        index: loaded with its truth.
        ensemble: as for `Inference.dataset`.

    Raises:
        ValueError: the index has no truth.
    """
    category_ids = tuple(category.id for category in index.categories)
    if index.truth is None:
        raise ValueError(f"{index.path} was loaded without its truth: an evaluation needs with_truth=True")
    evaluator = box_evaluator(index.truth, index.format, category_ids, engine=engine)
    own = index.take(np.arange(rank(), len(index), world_size()))
    found = inference.dataset(text, own, loading, ensemble=ensemble)
    with failing_together():
        for image_id, detections in progress(found, len(own), "detecting"):
            evaluator.update(image_id, detections)
    parts = gather_on_main(evaluator.results())
    evaluator.clear()
    if parts:
        results = concatenate(parts)
        by_id = np.argsort(index.image_ids)
        positions = by_id[np.searchsorted(index.image_ids, results.image_ids, sorter=by_id)]
        evaluator.add_results(results.take(np.argsort(positions, kind="stable")), source="all ranks")
    return evaluator
