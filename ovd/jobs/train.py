"""Train a detector from a config, under torchrun as one of its ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ovd.build.data import (
    load_labelled_pairs,
    load_training_index,
    load_validation_index,
    samples_drawn,
    training_batches,
)
from ovd.build.detector import (
    TrainedDetector,
    build_detector,
    check_text_tower,
    configured_clip,
    find_checkpoint,
    initialize,
    low_precision,
    resolve_device,
)
from ovd.build.text import build_text_bank, text_of_index
from ovd.build.training import build_saving, build_schedule
from ovd.config import TrainConfig, flatten, parse_config
from ovd.data.report import DataReport
from ovd.distributed import gather, is_main, main_first, process_group, wait_for_all, world_size
from ovd.engine.checkpoint import latest
from ovd.engine.train import train
from ovd.evaluation.report import format_table, write_report
from ovd.evaluation.truth import read_truth
from ovd.jobs.evaluate import detect_all
from ovd.model.detector import Detector
from ovd.precision import describe_machine
from ovd.selftrain.labels import label_files, labels_fingerprint

FREE_ON_RESUME = (
    "output", "bank.cache", "eval.", "data.workers", "data.source.val_", "train.save_every", "train.keep_checkpoints",
    "train.eval_every", "train.wandb", "clip.activation",
)  # fmt: skip


def train_from_config(
    config: TrainConfig, *, resume: bool = False, strict_resume: bool = False, evaluate: bool = True
) -> dict[str, float]:
    """Run a config to its end, under torchrun as one of its ranks.

    Returns:
        The metrics of the last evaluation; empty without a validation set, or without `evaluate`.

    Raises:
        ValueError: the run folder already holds a run and `resume` is not set; or a batch cannot be divided among the
            ranks.
    """
    with process_group():
        return _train(config, resume=resume, strict_resume=strict_resume, evaluate=evaluate)


def _train(config: TrainConfig, *, resume: bool, strict_resume: bool, evaluate: bool) -> dict[str, float]:
    if config.train.warmup_steps > config.train.steps:
        raise ValueError(
            f"train.warmup_steps is {config.train.warmup_steps}, more than train.steps, {config.train.steps}"
        )
    found = latest(config.output, strict=strict_resume)
    if found is not None:
        if not resume:
            raise ValueError(f"{config.output} already holds a run; give --resume, or another output=FOLDER")
        check_same_run(found.config, config)
    torch.set_num_threads(config.train.threads)
    device = resolve_device(config)
    wait_for_all()  # every rank has seen whether there is a run
    if is_main():
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        ranks = f", one of {world_size()} ranks" if world_size() > 1 else ""
        print(f"{config.output}: {describe_machine(device)}{ranks}")

    report = DataReport()
    with main_first():  # it may have to draw the world
        index = load_training_index(config, report)
        validation = load_validation_index(config, DataReport()) if evaluate else None
    if validation is not None:  # a file that the evaluator refuses is refused now, not after the training
        read_truth(validation.path, federated=validation.format == "lvis")
    torch.manual_seed(config.train.seed)
    clip = configured_clip(config.clip)
    detector = build_detector(config, clip)
    go_on_from, first_samples = None, (0, 0)
    if found is not None:
        first_samples = tuple(found.extra.get("first_samples", (0, 0)))
    elif config.init_from is not None:
        if config.init_state == "training":
            go_on_from = find_checkpoint(config.init_from)
            check_text_tower(go_on_from, clip)
            first_samples = samples_drawn(go_on_from)
        else:
            initialize(detector, config.init_from, clip)
    pairs, pair_texts = None, None
    if config.data.pairs is not None:
        pairs, pair_texts, counts = load_labelled_pairs(
            config.data.pairs, config.data.source, clip, first_id=len(index.categories)
        )
        if is_main():
            removed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            print(f"{len(pairs)} of {pairs.num_labelled} image-text pairs, {len(pair_texts)} texts; boxes: {removed}")
    data = {"annotations": index.fingerprint()}
    if config.data.pairs is not None and pairs is not None:
        data["labels"] = f"{labels_fingerprint(label_files(config.data.pairs.labels))}-{pairs.fingerprint()}"
    if found is not None:
        check_text_tower(found, clip)
        check_same_data(found.extra.get("data", {}), data, config.output)
    with main_first():
        bank = build_text_bank(config, clip, index)

    names = tuple(category.name for category in index.categories)
    text = None if validation is None else text_of_index(config, clip, validation)

    def evaluate_average(averaged: Detector) -> dict[str, float]:
        assert validation is not None
        assert text is not None
        evaluator = detect_all(TrainedDetector(averaged, config, clip, names), validation, text)
        metrics: dict[str, float] = {}
        if is_main():
            evaluation = evaluator.evaluate()
            print(format_table(evaluation))
            write_report(evaluation, config.output)
            metrics = evaluation.metrics
        return gather(metrics)[0]

    _, metrics = train(
        detector,
        training_batches(config, index, pairs, first_samples=first_samples, size_divisor=detector.size_divisor),
        bank,
        torch.tensor([category.image_count for category in index.categories]),
        pair_texts,
        schedule=build_schedule(config),
        saving=build_saving(config, first_samples, data),
        report=report,
        num_samples=len(index) if pairs is None else min(len(index), len(pairs)),
        device=device,
        low_precision=low_precision(config),
        evaluate=evaluate_average if validation is not None else None,
        solve_bias=config.init_from is None,
        go_on_from=go_on_from,
        resume_from=found,
    )
    return metrics


def check_same_run(stored: dict[str, Any], config: TrainConfig) -> None:
    """Stop a resume that would not continue the same run. A setting that the run's version did not have yet had its
    default.

    Raises:
        ValueError: naming every setting that differs, but for those that do not change what is learned.
    """
    then = parse_config(stored, TrainConfig, f"{config.output}, as it was started")
    before, now = flatten(then.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    different = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if different:
        raise ValueError(f"{config.output} was started with other settings: {'; '.join(different)}")


def check_same_data(stored: Mapping[str, str], data: Mapping[str, str], output: Path) -> None:
    """Stop a resume on other data: the order of the images, and what they teach, would not be those of the run.

    Args:
        stored: as the checkpoint has them; nothing in those of early versions.

    Raises:
        ValueError: naming what has changed.
    """
    different = [name for name, fingerprint in data.items() if stored.get(name, fingerprint) != fingerprint]
    if different:
        raise ValueError(
            f"{output} was started on other data: its {' and '.join(different)} changed since; give them back as they "
            "were, or start another run from this one (init_from)"
        )
