"""Evaluate a detector on a data set with a vocabulary of its own: every class of the annotation file is asked for."""

from jaxtyping import Float
from torch import Tensor

from ovd.data.annotations import AnnotationIndex
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.precision_recall import Engine
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

    Args:
        detector: in eval mode on its device.
        text: one unit row per category of `index`, in its order.
    """
    category_ids = tuple(category.id for category in index.categories)
    kind = LVISEvaluator if index.format == "lvis" else COCOEvaluator
    evaluator = kind(index.path, category_ids, engine=engine)
    found = detect_dataset(
        detector,
        text,
        index,
        size=size,
        batch_size=batch_size,
        num_workers=num_workers,
        options=options,
        low_precision=low_precision,
        ensemble=ensemble,
    )
    for image_id, detections in progress(found, len(index), "detecting"):
        evaluator.update(image_id, detections)
    return evaluator
