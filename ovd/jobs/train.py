"""Train a detector from a config, under torchrun as one of its ranks."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd.build.data import HeldOut, load_labelled_pairs, samples_drawn, training_batches
from ovd.build.detector import resolve_device
from ovd.build.learner import build_learner
from ovd.build.text import build_text_bank, check_bank, text_of_index, with_learned_names
from ovd.build.trained import (
    TrainedDetector,
    check_text_tower,
    find_checkpoint,
    initialize,
    stored_calibration,
)
from ovd.clip.load import Clip
from ovd.config import TrainConfig
from ovd.config_files import parse_config
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.distributed import from_main, gather, is_main, main_first, process_group
from ovd.engine.checkpoint import Checkpoint
from ovd.engine.early_stop import carry_over
from ovd.engine.notes import Notes
from ovd.engine.state import Checkpoints, Fresh, GoOnFrom, Resume, Start
from ovd.engine.step_texts import TextSampler
from ovd.engine.train import TrainingData, train
from ovd.evaluation.calibrate import CalibrationError
from ovd.evaluation.run import measure_results, print_measures, write_measures
from ovd.files import sha256_of
from ovd.jobs.calibrate import calibrate_detector, mean_example, readable_part
from ovd.jobs.evaluate import detect_all
from ovd.jobs.run_folder import check_resumed, find_run, is_finished, open_run_folder
from ovd.jobs.training_picture import drawing_the_first
from ovd.jobs.training_sets import load_training_sets, warn_of_absent_classes, warn_of_trained_images
from ovd.model.detector import Detector
from ovd.precision import deterministic, on_device
from ovd.selftrain.labelled_pairs import LabelledPairs
from ovd.selftrain.labels import label_files
from ovd.selftrain.ledger import labels_fingerprint
from ovd.text.pair_texts import PairTexts


def train_from_config(
    config: TrainConfig, *, resume: bool = False, strict_resume: bool = False, evaluate: bool = True
) -> dict[str, float]:
    """Run a config to its end, under torchrun as one of its ranks.

    Args:
        evaluate: whether to evaluate on the validation set; with `train.patience`, which goes by evaluations, it is
            done in any case.

    Returns:
        The metrics of the last evaluation; empty without any.

    Raises:
        ValueError: the run folder already holds a run and `resume` is not set, or a batch cannot be divided among the
            ranks.
    """
    with process_group(), deterministic(config.train.deterministic), on_device(resolve_device(config)):
        found = find_run(config, resume=resume, strict_resume=strict_resume)
        with open_run_folder(config, found):
            return _train(config, found, evaluate=evaluate)


def _train(config: TrainConfig, found: Checkpoint | None, *, evaluate: bool) -> dict[str, float]:
    """Build everything and train. The order matters: checks that can stop the run come before slow steps, and the
    weights are initialized right after the seed is set."""
    torch.set_num_threads(config.train.threads)
    report = DataReport()
    sets = load_training_sets(config, report, evaluate=evaluate)
    index, held_out, validation = sets.trained, sets.held_out, sets.validation
    if is_main():
        warn_of_absent_classes(config, index)
        if validation is not None:
            warn_of_trained_images(index, validation)
    torch.manual_seed(config.train.seed)
    clip, detector, criterion = build_learner(config, num_classes=len(index.categories))
    start, first_samples, start_weights = choose_start(config, found, detector, clip)
    pairs, pair_texts = _load_pairs(config, clip, first_id=len(index.categories))
    check_bank(config, clip, index)
    data_hashes = fingerprints(config, index, pairs, validation)
    if found is not None:
        check_resumed(found, config, clip, data_hashes)
    with main_first():
        bank = build_text_bank(config, clip, index)
    checkpoints = Checkpoints(
        config.output,
        keep=config.train.keep_checkpoints,
        config=config.model_dump(mode="json"),
        notes=Notes(
            text_tower=bank.text_tower,
            classes=tuple(bank.names),
            first_samples=first_samples,
            data=data_hashes,
            init_sha256=None if start_weights is None else sha256_of(start_weights),
        ),
    )
    if found is not None:
        checkpoints.notes = replace(checkpoints.notes, init_sha256=found.notes.init_sha256)
        carry_over(found.notes, found.attached(), checkpoints)
        if is_finished(found, config):
            checkpoints.notes = replace(checkpoints.notes, calibration=found.notes.calibration)
            checkpoints.attached |= found.attached()
    texts = TextSampler(
        bank=bank,
        image_counts=torch.tensor([category.image_count for category in index.categories]),
        negatives=config.train.negatives,
        sampled_classes=config.train.sampled_classes,
        noise=config.bank.noise,
        pair_texts=pair_texts,
        sampled_texts=config.data.pairs.sampled_texts if config.data.pairs is not None else 0,
        pair_negatives=config.train.pair_negatives,
        held_out=None if held_out is None else torch.from_numpy(held_out.names),
        name_dropout=config.train.name_dropout,
    )
    batches = training_batches(config, index, pairs, first_samples=first_samples, size_divisor=detector.size_divisor)
    if is_main():
        batches = drawing_the_first(batches, config.output, partial(_names_of, index, pair_texts))
    data = TrainingData(
        batches,
        texts,
        num_samples=len(index) if pairs is None else min(len(index), len(pairs)),
        report=report,
    )
    evaluate_average = None if validation is None else _evaluation_of(config, clip, validation, checkpoints)
    calibrate = None if held_out is None else _calibration_of(config, clip, held_out, checkpoints)
    return train(detector, data, criterion, start, checkpoints, evaluate=evaluate_average, calibrate=calibrate)


def choose_start(
    config: TrainConfig, found: Checkpoint | None, detector: Detector, clip: Clip
) -> tuple[Start, tuple[int, int], Path | None]:
    """The start of the training, the number of images and pairs that earlier stages have drawn, and the file of the
    weights of another run that it starts from."""
    if found is not None:
        return Resume(found), found.notes.first_samples, None
    if config.init_from is None:
        return Fresh(), (0, 0), None
    if config.init_state == "training":
        before = find_checkpoint(config.init_from)
        check_text_tower(before, clip)
        _warn_of_seen_images(config, before)
        return GoOnFrom(before), samples_drawn(before), before.weights
    return Fresh(solve_bias=False), (0, 0), initialize(detector, config.init_from, clip)


def _warn_of_seen_images(config: TrainConfig, before: Checkpoint) -> None:
    """Say if an earlier stage on the same data was trained on images that this one is to be calibrated on."""
    options = config.train.calibration
    if options is None or not is_main():
        return
    earlier = parse_config(before.config, TrainConfig, f"{before.folder}/state.json")
    of_earlier = earlier.train.calibration
    held_out = earlier.data.held_out if of_earlier is None else of_earlier.images
    if held_out < options.images and earlier.data.source == config.data.source:
        print(
            f"warning: {config.init_from} was trained on images that train.calibration holds out here; train it with "
            f"data.held_out={options.images}"
        )


def _load_pairs(config: TrainConfig, clip: Clip, *, first_id: int) -> tuple[LabelledPairs | None, PairTexts | None]:
    if config.data.pairs is None:
        return None, None
    pairs, pair_texts, counts = load_labelled_pairs(config.data.pairs, config.data.source, clip, first_id=first_id)
    if is_main():
        removed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        print(f"{len(pairs)} of {pairs.num_labelled} image-text pairs, {len(pair_texts)} texts; boxes: {removed}")
    return pairs, pair_texts


def _names_of(index: AnnotationIndex, pair_texts: PairTexts | None, ids: Sequence[int]) -> list[str]:
    """Names of classes, and texts of pairs, by the ids that batches have."""
    of_texts = [number for number in ids if number >= len(index.categories)]
    texts = dict(zip(of_texts, pair_texts.texts(of_texts), strict=True)) if pair_texts is not None else {}
    return [texts[number] if number in texts else index.categories[number].name for number in ids]


def fingerprints(
    config: TrainConfig, index: AnnotationIndex, pairs: LabelledPairs | None, validation: AnnotationIndex | None
) -> dict[str, str]:
    """Hashes of all that a training goes by besides its config and its start, by name.

    Args:
        index: what is trained on, without what is held out.
        validation: counts where `train.patience` goes by it.

    Raises:
        ValueError: the ranks have read different data.
    """
    data = {"annotations": index.fingerprint()}
    if config.data.pairs is not None and pairs is not None:
        data["labels"] = f"{labels_fingerprint(label_files(config.data.pairs.labels))}-{pairs.fingerprint()}"
    if config.train.patience and validation is not None:
        data["validation set"] = validation.fingerprint()
    for name, file in (("text bank", config.bank.file), ("paraphrases", config.bank.paraphrases)):
        if file is not None:
            data[name] = sha256_of(file)
    of_ranks = gather(data)
    if any(other != data for other in of_ranks):
        raise ValueError(f"the ranks have read different data, as if it were still being written: {of_ranks}")
    return data


def _calibration_of(
    config: TrainConfig, clip: Clip, held_out: HeldOut, checkpoints: Checkpoints
) -> Callable[[Detector], None]:
    """A function that calibrates a detector on the main process, for the next checkpoint and all ranks' evaluation."""

    def calibrate(averaged: Detector) -> None:
        found: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        if is_main():
            trained = TrainedDetector(averaged, config, clip, checkpoints.notes.classes)
            try:
                readable = readable_part(held_out)
                calibration = calibrate_detector(trained, readable)
                attached = {"trained_text": calibration.trained_text, "mean_example": mean_example(config, readable)}
                found = calibration.to_json(), attached
            except CalibrationError as error:
                print(f"warning: {error}; the detector has no calibration")
            except Exception as error:  # such as memory that is too small: the training is not to be lost with it
                traceback.print_exc()
                print(f"warning: the calibration failed ({error}); the detector has none")
        found = from_main(found)
        if found is not None:
            checkpoints.notes = replace(checkpoints.notes, calibration=found[0])
            checkpoints.attached |= found[1]

    return calibrate


def _evaluation_of(
    config: TrainConfig, clip: Clip, validation: AnnotationIndex, checkpoints: Checkpoints
) -> Callable[[Detector], dict[str, float]]:
    """A function that evaluates a detector on the validation set; its metrics are the same on every rank."""
    text = text_of_index(config, clip, validation)

    def evaluate(averaged: Detector) -> dict[str, float]:
        calibration = stored_calibration(checkpoints.notes, checkpoints.attached)
        trained = TrainedDetector(averaged, config, clip, checkpoints.notes.classes, calibration)
        evaluator = detect_all(trained, validation, with_learned_names(trained, validation.names, text))
        metrics: dict[str, float] = {}
        if is_main():
            measures = measure_results(
                evaluator, exhaustive=validation.exhaustive_truth, own_threshold=trained.threshold
            )
            print_measures(measures)
            try:
                write_measures(measures, config.output, index=validation)
            except OSError as error:  # a full disk is no reason to end a training
                print(f"warning: {config.output}: files of an evaluation cannot be written ({error})")
            metrics = measures.evaluation.metrics
        return from_main(metrics)

    return evaluate
