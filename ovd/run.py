"""Whole jobs, as the tools and the quick start run them: train from a config, evaluate what was trained."""

from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from ovd.build import (
    TrainedDetector,
    build_detector,
    build_saving,
    build_schedule,
    build_text_bank,
    detection_options,
    evaluation_text,
    initialise,
    load_training_index,
    load_validation_index,
    low_precision,
    resolve_device,
    training_batches,
)
from ovd.clip.load import load_clip
from ovd.config import TrainConfig
from ovd.data.annotations import AnnotationIndex, load_annotations
from ovd.data.report import DataReport
from ovd.engine.checkpoint import latest
from ovd.engine.train import train
from ovd.evaluation.detector import evaluate_detector
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.precision_recall import Engine
from ovd.evaluation.report import Evaluation, format_table, write_report
from ovd.evaluation.results import write_results
from ovd.evaluation.truth import read_truth
from ovd.inference import prepare
from ovd.model.detector import Detector
from ovd.precision import describe_machine

FREE_ON_RESUME = (
    "output", "bank.cache", "eval.", "data.workers", "data.source.val_", "train.save_every", "train.keep_checkpoints",
    "train.eval_every",
)  # fmt: skip


def train_from_config(
    config: TrainConfig, *, resume: bool = False, strict_resume: bool = False, evaluate: bool = True
) -> dict[str, float]:
    """Run a config to its end.

    Returns:
        The metrics of the last evaluation; empty without a validation set, or without `evaluate`.

    Raises:
        ValueError: the run folder already holds a run and `resume` is not set.
    """
    found = latest(config.output, strict=strict_resume)
    if found is not None:
        if not resume:
            raise ValueError(f"{config.output} already holds a run; give --resume, or another output=FOLDER")
        check_same_run(found.config, config)
    torch.set_num_threads(config.train.threads)
    device = resolve_device(config)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    print(f"{config.output}: {describe_machine(device)}")

    report = DataReport()
    index = load_training_index(config, report)
    validation = load_validation_index(config, DataReport()) if evaluate else None
    if validation is not None:  # a file that the evaluator refuses is refused now, not after the training
        read_truth(validation.path, federated=validation.format == "lvis")
    torch.manual_seed(config.train.seed)
    clip = load_clip(config.clip.name, config.clip.weights)
    detector = build_detector(config, clip)
    if config.init_from is not None and found is None:
        initialise(detector, config.init_from)

    def evaluate_average(averaged: Detector) -> dict[str, float]:
        assert validation is not None
        evaluation = detect_all(TrainedDetector(averaged, config, clip), validation).evaluate()
        print(format_table(evaluation))
        write_report(evaluation, config.output)
        return evaluation.metrics

    _, metrics = train(
        detector,
        training_batches(config, index),
        build_text_bank(config, clip, index),
        torch.tensor([category.image_count for category in index.categories]),
        schedule=build_schedule(config),
        saving=build_saving(config),
        report=report,
        device=device,
        low_precision=low_precision(config),
        evaluate=evaluate_average if validation is not None else None,
        solve_bias=config.init_from is None,
        resume_from=found,
    )
    return metrics


def check_same_run(stored: dict[str, Any], config: TrainConfig) -> None:
    """Stop a resume that would not continue the same run.

    Raises:
        ValueError: naming every setting that differs, but for those that do not change what is learned.
    """
    before, now = _flatten(stored), _flatten(config.model_dump(mode="json"))
    different = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if different:
        raise ValueError(f"{config.output} was started with other settings: {'; '.join(different)}")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def detect_all(
    trained: TrainedDetector, index: AnnotationIndex, engine: Engine | None = None, size: int | None = None
) -> BoxEvaluator:
    """Ask a detector, already on its device, for every class of a data set in every image of it."""
    config = trained.config
    return evaluate_detector(
        trained.detector,
        evaluation_text(config, trained.clip, [category.name for category in index.categories]),
        index,
        engine=engine or config.eval.engine,
        size=size or config.data.size,
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
        options=detection_options(config),
        low_precision=low_precision(config),
    )


def evaluate_run(
    trained: TrainedDetector,
    *,
    output: Path,
    annotations: Path | None = None,
    images: Path | None = None,
    format: Literal["lvis", "coco"] | None = None,
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
        raise ValueError("--annotations needs --images (their folder) and --format (lvis or coco)")
    else:
        index = load_annotations(annotations, images, format=format, report=DataReport())
    evaluator = detect_all(trained, index, engine, size)
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / "results.json", evaluator.results())
    evaluation = evaluator.evaluate()
    print(format_table(evaluation))
    write_report(evaluation, output)
    return evaluation
