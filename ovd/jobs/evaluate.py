"""Evaluate a detector on a data set with a vocabulary of its own."""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.build.data import DataFormat, load_evaluation_index, load_validation_index
from ovd.build.detector import (
    TrainedDetector,
    configured_clip,
    detection_options,
    low_precision,
    resolve_device,
    score_ensemble,
)
from ovd.build.text import text_of_index
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.evaluation.detector import evaluate_detector
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.naming import (
    Retention,
    format_retention,
    group_average_precision,
    measure_retention,
    write_retention,
)
from ovd.evaluation.precision_recall import Engine
from ovd.evaluation.report import Evaluation, format_table, write_report
from ovd.evaluation.results import write_results
from ovd.inference import prepare
from ovd.model.backbone_families import backbone_of

RETENTION_IMAGES = 300
"""Over a thousand boxes, in seconds."""


def detect_all(
    trained: TrainedDetector,
    index: AnnotationIndex,
    text: Float[Tensor, "C D"],
    *,
    engine: Engine | None = None,
    size: int | None = None,
) -> BoxEvaluator:
    """Ask a detector, already on its device, for every class of a data set in every image of it.

    Args:
        text: of the data set's classes (`text_of_index`).
    """
    config = trained.config
    options = detection_options(config)
    if config.eval.compile:
        trained.detector.compile_learned_path()
        options = replace(options, use_compiled=True)
    return evaluate_detector(
        trained.detector,
        text,
        index,
        engine=engine or config.eval.engine,
        size=size or config.data.size,
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
        options=options,
        low_precision=low_precision(config),
        ensemble=score_ensemble(trained, [category.name for category in index.categories]),
    )


def evaluate_run(
    trained: TrainedDetector,
    *,
    output: Path,
    annotations: Path | None = None,
    images: Path | None = None,
    format: DataFormat | None = None,
    engine: Engine | None = None,
    size: int | None = None,
) -> Evaluation:
    """Evaluate on a data set with a vocabulary of its own, by default the run's validation set; write all files.

    Raises:
        ValueError: no data set is given and the run has none, or it is given only in part.
    """
    config = trained.config
    prepare(trained.detector, resolve_device(config), low_precision=low_precision(config))
    if annotations is None:
        if images is not None or format is not None:
            raise ValueError("--images and --format belong to --annotations, which is missing")
        index = load_validation_index(config, DataReport())
        if index is None:
            raise ValueError("the run's config names no validation set; give --annotations, --images and --format")
    elif images is None or format is None:
        raise ValueError("--annotations needs --images (their folder) and --format (lvis, coco, ...)")
    else:
        index = load_evaluation_index(annotations, images, format, report=DataReport())
    text = text_of_index(config, trained.clip, index)
    evaluator = detect_all(trained, index, text, engine=engine, size=size)
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / "results.json", evaluator.results())
    evaluation = evaluator.evaluate()
    print(format_table(evaluation))
    write_report(evaluation, output)
    retention = retention_of(trained, index, text, size=size)
    print(format_retention(retention, group_average_precision(evaluation.classes)))
    write_retention(retention, output)
    return evaluation


def retention_of(
    trained: TrainedDetector, index: AnnotationIndex, text: Float[Tensor, "C D"], *, size: int | None = None
) -> Retention:
    """What a detector, already on its device, kept of CLIP's zero-shot ability at the true boxes of a data set.

    Args:
        text: of the data set's classes (`text_of_index`).
    """
    config = trained.config
    torch.manual_seed(config.train.seed)  # as in training, should the CLIP weights be random
    untouched = configured_clip(config.clip)
    return measure_retention(
        trained.detector,
        backbone_of(untouched.model.visual),
        text,
        index,
        size=size or config.data.size,
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
        low_precision=low_precision(config),
        max_images=RETENTION_IMAGES,
    )
