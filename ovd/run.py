"""Whole jobs, as the tools and the quick start run them: train from a config, evaluate, label image-text pairs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from ovd.build import (
    DataFormat,
    TrainedDetector,
    build_detector,
    build_saving,
    build_schedule,
    build_text_bank,
    check_text_tower,
    configured_clip,
    detection_options,
    evaluation_text,
    find_checkpoint,
    initialise,
    load_evaluation_index,
    load_labelled_pairs,
    load_training_index,
    load_validation_index,
    low_precision,
    resolve_device,
    samples_drawn,
    score_ensemble,
    training_batches,
)
from ovd.clip.load import Clip
from ovd.config import TrainConfig, WorldData, flatten, load_config, parse_config
from ovd.data.annotations import AnnotationIndex
from ovd.data.report import DataReport
from ovd.data.world.build import TRANSFER_PARTS, build_world
from ovd.data.world.settings import Settings
from ovd.distributed import gather, is_main, main_first, process_group, wait_for_all, world_size
from ovd.engine.checkpoint import latest
from ovd.engine.retention import (
    Retention,
    format_retention,
    group_average_precision,
    measure_retention,
    write_retention,
)
from ovd.engine.step_dump import read_step
from ovd.engine.train import assignment_rule, backward, train
from ovd.evaluation.detector import evaluate_detector
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.precision_recall import Engine
from ovd.evaluation.report import Evaluation, format_table, write_report
from ovd.evaluation.results import write_results
from ovd.evaluation.truth import read_truth
from ovd.inference import DetectionOptions, prepare
from ovd.model.detector import Detector
from ovd.model.towers import image_tower
from ovd.precision import describe_machine
from ovd.selftrain.hf_teacher import HuggingFaceTeacher
from ovd.selftrain.labels import label_files, labels_fingerprint
from ovd.selftrain.pseudo_label import LabelCounts, LabelOptions, label_shards
from ovd.selftrain.teacher import OvdTeacher, Teacher, TextVariants
from ovd.text.encoder import text_tower_on
from ovd.text.prompts import TEMPLATES

RETENTION_IMAGES = 300
"""Over a thousand boxes, in seconds."""

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
            initialise(detector, config.init_from, clip)
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


def replay_step(dump: Path) -> None:
    """Print the losses of each image of a dumped training step, with float32 on the CPU.

    Raises:
        ValueError: not a dump, or its run's config is not beside it.
    """
    step, weights, batch, texts, losses = read_step(dump)
    config = load_config(dump.parent / "config.yaml", [], TrainConfig)
    torch.manual_seed(config.train.seed)
    detector = build_detector(config, configured_clip(config.clip))
    detector.load_state_dict(weights)
    print(f"as trained: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}")
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    print(f"weights that are not finite: {', '.join(bad[:20]) or 'none'}")
    schedule = build_schedule(config)
    for row, image_id in enumerate(batch.image_ids):
        image = slice(row, row + 1)
        one, its_texts = batch.of_images(image), texts.of_images(image)
        with torch.no_grad():
            predictions = detector.train()(one.images)
        finite = [bool(value.isfinite().all()) for value in (predictions.embeddings, predictions.boxes)]
        rule = assignment_rule(schedule, step)
        values = backward(detector, detector, one, its_texts, schedule, rule, low_precision=False)
        shown = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        print(f"image {image_id}: {shown}; embeddings finite: {finite[0]}, boxes finite: {finite[1]}")


def draw_world(config: TrainConfig) -> Path:
    """The config's embedded world with all its parts but the pretraining pairs, drawn where it is not there yet.

    Raises:
        ValueError: the config's data is not the world.
    """
    source = config.data.source
    if not isinstance(source, WorldData):
        raise ValueError("this works on the embedded world only: data.source.kind=world")
    return build_world(source.root, ("train", "val", "pairs", *TRANSFER_PARTS), Settings(seed=source.seed))


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


def text_of_index(config: TrainConfig, clip: Clip, index: AnnotationIndex) -> Float[Tensor, "C D"]:
    """What a data set's classes are asked for with, in its order."""
    names = [category.name for category in index.categories]
    return evaluation_text(config, clip, names, [category.synonyms for category in index.categories])


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
        image_tower(untouched.model.visual),
        text,
        index,
        size=size or config.data.size,
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
        low_precision=low_precision(config),
        max_images=RETENTION_IMAGES,
    )


def pseudo_label_run(
    trained: TrainedDetector,
    *,
    pairs: Path,
    output: Path,
    options: LabelOptions,
    templates: str | None = None,
    teacher_hf: str | None = None,
    size: int | None = None,
    rank: int = 0,
    world: int = 1,
    num_shards: int | None = None,
) -> LabelCounts:
    """Find boxes in shards of image-text pairs for training on them; see selftrain/pseudo_label.py.

    Args:
        trained: the teacher; its text tower is the one that a student of the labels will speak.
        templates: one of TEMPLATES that names and phrases are asked for in; the run's by default. Captions are asked
            for as they stand.
        teacher_hf: a zero-shot detector of transformers that finds the boxes instead.
        size: longest side of an image in pixels, as trained by default; transformers' detectors have their own.
    """
    config = trained.config
    device = resolve_device(config)
    prompts = None if options.source == "caption" else TEMPLATES[templates or config.bank.templates]
    texts = TextVariants(trained.clip, prompts)
    max_boxes = options.max_boxes + 1  # one more than is kept, so that the job sees where it leaves some out
    teacher: Teacher
    if teacher_hf is not None:
        teacher = HuggingFaceTeacher(
            teacher_hf,
            device=device,
            score_threshold=options.score_threshold,
            max_boxes=max_boxes,
            nms_iou=config.eval.nms_iou,
        )
    else:
        if config.eval.ensemble is not None:  # CLIP's part of the scores wants a whole vocabulary to choose from
            print(f"{config.output}: the teacher's own scores alone, without CLIP's part in them (eval.ensemble)")
        teacher = OvdTeacher(
            prepare(trained.detector, device, low_precision=low_precision(config)),
            texts,
            run=str(config.output),
            size=size or config.data.size,
            options=DetectionOptions(
                score_threshold=options.score_threshold,
                nms_iou=config.eval.nms_iou,
                max_detections=max_boxes,
                candidates=config.eval.candidates,
            ),
            low_precision=low_precision(config),
        )
    print(f"{output}: {teacher.name}, {describe_machine(device)}")
    with text_tower_on(trained.clip, device):
        return label_shards(pairs, output, teacher, texts, options, rank=rank, world=world, num_shards=num_shards)
