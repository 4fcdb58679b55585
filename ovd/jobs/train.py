"""Train a detector from a config, alone or as one rank under torchrun."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ovd.build.data import HeldOut
from ovd.build.detector import resolve_device
from ovd.build.text import build_text_bank, build_text_sampler, evaluation_text, queries_of_index
from ovd.build.trained import TrainedDetector, stored_calibration
from ovd.clip.load import Clip
from ovd.config.training import TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.distributed import broadcast, is_main, main_first, process_group
from ovd.engine.checkpoint import Checkpoint
from ovd.engine.checkpoint_writer import CheckpointWriter
from ovd.engine.early_stop import restore_early_stop
from ovd.engine.notes import Notes
from ovd.engine.signals import Stopped, StopRequest
from ovd.engine.train import Evaluate, TrainingData, train
from ovd.evaluation.calibrate import CalibrationError
from ovd.evaluation.run import measure_results, print_measures, write_measures
from ovd.jobs.calibrate import calibrate_detector, mean_example, readable_part
from ovd.jobs.evaluate import detect_all
from ovd.jobs.prerequisites import check_prerequisites
from ovd.jobs.resume import find_run
from ovd.jobs.run_folder import is_finished, open_run_folder
from ovd.jobs.training_picture import draw_first_batch
from ovd.jobs.training_sets import load_training_sets, warn_of_absent_classes, warn_of_trained_images
from ovd.jobs.training_setup import build_training_setup
from ovd.model.detector import Detector
from ovd.precision import deterministic, on_device
from ovd.selftrain.labeled_pairs import LabeledPairs
from ovd.warn import warn


def train_from_config(
    config: TrainConfig, *, resume: bool = False, strict_resume: bool = False, evaluate: bool = True
) -> dict[str, float]:
    """Train a detector to the end of its config, alone or as one rank under torchrun.

    Args:
        evaluate: whether to evaluate on the validation set; `train.patience`, which depends on evaluations, implies it.

    Returns:
        The metrics of the last evaluation; empty if there was none.

    Raises:
        ValueError: the run folder already holds a run and `resume` is not set, or a batch cannot be divided among the
            ranks.
    """
    with process_group(), deterministic(config.train.deterministic), on_device(resolve_device(config)):
        check_prerequisites(config)
        found = find_run(config, resume=resume, strict_resume=strict_resume)
        torch.set_num_threads(config.train.threads)  # before the folder is opened, which prints their number
        with open_run_folder(config, found):
            return _train(config, found, evaluate=evaluate)


def _train(config: TrainConfig, found: Checkpoint | None, *, evaluate: bool) -> dict[str, float]:
    """Build everything and train; checks that can stop the run come before slow steps."""
    report = DataReport()
    sets = load_training_sets(config, report, evaluate=evaluate)
    index, held_out, validation = sets.trained, sets.held_out, sets.validation
    if is_main():
        warn_of_absent_classes(config, index)
        if validation is not None:
            warn_of_trained_images(index, validation)
    setup = build_training_setup(config, found, sets)
    learner, start, pairs = setup.learner, setup.start, setup.pairs
    if pairs is not None and is_main():
        print(pairs.summary)
    with main_first():
        bank = build_text_bank(config, learner.clip, index)
    checkpoints = CheckpointWriter(
        config.output,
        keep=config.train.keep_checkpoints,
        config=config.model_dump(mode="json"),
        notes=Notes(
            text_tower=bank.text_tower,
            classes=tuple(bank.names),
            first_samples=start.first_samples,
            data=setup.data_hashes,
            init_sha256=start.init_sha256(),
            is_calibration_pending=found is not None and found.notes.is_calibration_pending,
        ),
    )
    if found is not None:
        restore_early_stop(found, checkpoints)
        if is_finished(found, config):
            checkpoints.notes = replace(checkpoints.notes, calibration=found.notes.calibration)
            checkpoints.attached |= found.attached()
    texts = build_text_sampler(
        config,
        bank,
        torch.tensor([category.image_count for category in index.categories]),
        pair_texts=None if pairs is None else pairs.texts,
        held_out=None if held_out is None else torch.from_numpy(held_out.names),
    )
    batches_from = setup.batches_from
    if is_main():
        batches_from = draw_first_batch(batches_from, config.output, partial(_names_of, index, pairs))
    data = TrainingData(
        batches_from,
        texts,
        num_samples=len(index) if pairs is None else min(len(index), len(pairs)),
        report=report,
    )
    evaluate_average = None if validation is None else _evaluation_of(config, learner.clip, validation, checkpoints)
    calibrate = None if held_out is None else _calibration_of(config, learner.clip, held_out, checkpoints)
    return train(
        learner.detector,
        data,
        learner.criterion,
        start.start,
        checkpoints,
        evaluate=evaluate_average,
        calibrate=calibrate,
    )


def _names_of(index: AnnotationIndex, pairs: LabeledPairs | None, ids: Sequence[int]) -> list[str]:
    """Return the class names and pair texts of the ids in a batch."""
    text_ids = [number for number in ids if number >= len(index.categories)]
    texts = dict(zip(text_ids, pairs.texts.texts(text_ids), strict=True)) if pairs is not None else {}
    return [texts[number] if number in texts else index.categories[number].name for number in ids]


def _calibration_of(
    config: TrainConfig, clip: Clip, held_out: HeldOut, checkpoints: CheckpointWriter
) -> Callable[[Detector, StopRequest], None]:
    """Return a function that calibrates a detector, for the next checkpoint and the evaluation on all ranks.

    The calibration is computed on the main process; it raises `Stopped` on all ranks if a stop is requested there.
    """

    def calibrate(averaged: Detector, stop: StopRequest) -> None:
        found: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        is_stopped = False
        if is_main():
            trained = TrainedDetector(averaged, config, clip, checkpoints.notes.classes)
            try:
                readable = readable_part(held_out, stop)
                calibration = calibrate_detector(trained, readable, stop)
                example = mean_example(config, readable, stop)
                found = calibration.to_json(), {"trained_text": calibration.trained_text, "mean_example": example}
            except Stopped:
                is_stopped = True
            except CalibrationError as error:
                warn(f"{error}; the detector is not calibrated")
            except Exception as error:  # such as out of memory: it must not end the training
                traceback.print_exc()
                warn(f"the calibration failed ({error}); the detector is not calibrated")
        found, is_stopped = broadcast((found, is_stopped))
        if is_stopped:
            raise Stopped
        if found is not None:
            checkpoints.notes = replace(checkpoints.notes, calibration=found[0])
            checkpoints.attached |= found[1]

    return calibrate


def _evaluation_of(
    config: TrainConfig, clip: Clip, validation: AnnotationIndex, checkpoints: CheckpointWriter
) -> Evaluate:
    """Return a function that evaluates a detector on the validation set."""
    clip_text = evaluation_text(config, clip, validation.names, validation.synonyms)

    def evaluate(averaged: Detector, stop: StopRequest | None) -> dict[str, float]:
        calibration = stored_calibration(checkpoints.notes, checkpoints.attached)
        trained = TrainedDetector(averaged, config, clip, checkpoints.notes.classes, calibration)
        queries = queries_of_index(trained, validation, clip_text=clip_text)
        evaluator = detect_all(trained, validation, queries, stop=stop)
        metrics: dict[str, float] = {}
        if is_main():
            measures = measure_results(
                evaluator, exhaustive=validation.exhaustive_truth, own_threshold=trained.threshold
            )
            print_measures(measures)
            try:
                write_measures(measures, config.output, index=validation)
            except OSError as error:  # a full disk is no reason to end a training
                warn(f"{config.output}: the files of the evaluation cannot be written ({error})")
            metrics = measures.evaluation.metrics
        return broadcast(metrics)

    return evaluate
