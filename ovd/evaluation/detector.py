"""Evaluate a detector on a data set with a vocabulary of its own: every class of the annotation file is asked for."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ovd.data.index import AnnotationIndex
from ovd.distributed import gather, rank, world_size
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.precision_recall import Engine
from ovd.evaluation.results import concatenate
from ovd.evaluation.run import box_evaluator
from ovd.inference import DetectionOptions, detect_dataset
from ovd.model.detector import Detector
from ovd.model.postprocess import ScoreEnsemble
from ovd.progress import progress


def evaluate_detector(
    detector: Detector,
    text: Float[Tensor, "C D"],
    index: AnnotationIndex,
    *,
    engine: Engine,
    size: int,
    batch_size: int,
    num_workers: int,
    options: DetectionOptions,
    low_precision: bool,
    ensemble: ScoreEnsemble | None = None,
) -> BoxEvaluator:
    """Detect in every image of the data set; the evaluator returned has all results and computes on demand.

    Each rank detects in its part of the images, and every rank's evaluator has the results of all.

    Args:
        detector: in eval mode on its device.
        text: one unit row per category of `index`, in its order.
    """
    category_ids = tuple(category.id for category in index.categories)
    evaluator = box_evaluator(index.path, index.format, category_ids, engine=engine)
    own = index.take(np.arange(rank(), len(index), world_size()))
    found = detect_dataset(
        detector,
        text,
        own,
        size=size,
        batch_size=batch_size,
        num_workers=num_workers,
        options=options,
        low_precision=low_precision,
        ensemble=ensemble,
    )
    for image_id, detections in progress(found, len(own), "detecting"):
        evaluator.update(image_id, detections)
    if world_size() == 1:
        return evaluator
    results = concatenate(gather(evaluator.results()))
    evaluator.clear()
    position = {image_id: row for row, image_id in enumerate(index.image_ids.tolist())}
    order = np.argsort([position[image_id] for image_id in results.image_ids.tolist()], kind="stable")
    evaluator.add_results(results.take(order), source="all ranks")
    return evaluator
