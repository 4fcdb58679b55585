"""One run of the ablation: all stages of a row at one seed, evaluated on the world's three data sets."""

import datetime
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from ovd.ablation.records import Record
from ovd.build.data import hold_out, load_evaluation_index, load_training_index
from ovd.build.detector import resolve_device
from ovd.build.text import queries_of_index
from ovd.build.trained import TrainedDetector, load_detector
from ovd.build.world import draw_world
from ovd.config.alignment import AlignConfig
from ovd.config.labeling import LabelOptions
from ovd.config.tables import AblationRow, LabelsConfig
from ovd.config.training import TrainConfig, TrainSection, WorldData
from ovd.config_files import ConfigError, flatten, load_config
from ovd.data.world.build import TRANSFER_PARTS
from ovd.files import short_hash, write_json
from ovd.jobs.align_backbone import align_backbone
from ovd.jobs.calibrate import calibrate_detector
from ovd.jobs.evaluate import detect_all, evaluate_run
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.jobs.train import train_from_config
from ovd.precision import device_name, instruction_set
from ovd.selftrain.pseudo_label import shards_of_worker

UNHASHED_SETTINGS = ("data.workers", "init_from", "data.pairs.labels")
"""Settings that do not affect a row's metrics: the number of loader workers, and paths that a row fills in."""
RECORDED_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "albumentations", "hotcoco", "numpy")


@dataclass(frozen=True)
class RowStages:
    """The configs of a row's stages, before seed and folders are set."""

    final: TrainConfig
    teacher: TrainConfig | None
    labels: LabelsConfig | None
    align: AlignConfig | None = None

    @property
    def steps(self) -> int:
        return self.final.train.steps + (self.teacher.train.steps if self.teacher is not None else 0)

    def training_hash(self) -> str:
        """Return a hash of the settings that the final weights depend on.

        Unlike `hash`, it excludes the evaluation of the final run, unless that chooses the weights (`train.patience`).
        """
        if self.final.train.patience:
            return self.hash()
        final = self.final.model_copy(update={"eval": TrainConfig.model_fields["eval"].default})
        return replace(self, final=final).hash()

    def hash(self) -> str:
        """Return a hash of all settings that a run's metrics depend on, the same for every seed."""
        stages = [self.final, self.teacher]
        content = [changed_settings(with_seed(stage, 0, Path())) if stage is not None else {} for stage in stages]
        content.append(self.labels.model_dump(mode="json", exclude_defaults=True) if self.labels else {})
        if self.align is not None:
            content.append(with_seed(self.align, 0, Path()).model_dump(mode="json"))
        return short_hash(content)

    def with_backbone(self, aligned: Path) -> "RowStages":
        """Return the stages after `align`, with the aligned CLIP model of a folder."""
        final, teacher = (
            stage and stage.model_copy(update={"clip": stage.clip.model_copy(update={"name": str(aligned)})})
            for stage in (self.final, self.teacher)
        )
        assert final is not None
        return RowStages(final, teacher, self.labels)


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a run's metrics depend on and that are not at their defaults, by dotted name, to hash.

    `UNHASHED_SETTINGS` are left out. Settings at their defaults are left out so that a new setting without effect does
    not outdate records; those of `data.pairs`, `eval.ensemble`, `eval.second_look` and `train.region_distillation` are
    hashed in any case. When a default is changed, the old value must be written into the configs that relied on it.
    """
    defaults = flatten(TrainConfig(output=Path(), train=TrainSection(steps=1)).model_dump(mode="json"))
    settings = flatten(config.model_dump(mode="json"))
    return {
        name: value
        for name, value in settings.items()
        if name not in UNHASHED_SETTINGS and defaults.get(name, ...) != value
    }


def read_row(row: AblationRow, folder: Path, overrides: list[str]) -> RowStages:
    """Read the configs of a row's stages.

    Args:
        folder: folder that the row's paths are relative to.

    Raises:
        ConfigError: a config cannot be used, or is not on the embedded world.
    """
    final = load_config(folder / row.config, [*row.overrides, *overrides], TrainConfig)
    teacher = load_config(folder / row.teacher, overrides, TrainConfig) if row.teacher else None
    align = load_config(folder / row.align, [], AlignConfig) if row.align else None
    for config in (final, teacher, align):
        if config is not None and not isinstance(config.data.source, WorldData):
            raise ConfigError(
                f"{folder / row.config}: the seeds of an ablation draw worlds; set data.source.kind=world"
            )
    return RowStages(final, teacher, row.labels, align)


ConfigType = TypeVar("ConfigType", TrainConfig, AlignConfig)


def with_seed(config: ConfigType, seed: int, output: Path) -> ConfigType:
    """Return the config with this seed for the world and the training, and this output folder."""
    values = config.model_dump(mode="json")
    values["output"] = str(output)
    values["train"]["seed"] = values["data"]["source"]["seed"] = seed
    return type(config).model_validate(values)


@dataclass(frozen=True)
class TrainedRow:
    """A row's finished training with one seed."""

    config: TrainConfig
    """Config of the final stage; `output` is the run folder."""
    world: Path
    """Folder of the world that was drawn for the seed."""
    hours: float
    """Hours of alignment, training and labeling, including stages that were done for another row."""


def train_row(stages: RowStages, seed: int, runs: Path) -> TrainedRow:
    """Align, train, label and train again as the row defines; finished stages of an earlier call are not repeated."""
    folder = runs / f"seed-{seed}" / stages.training_hash()  # shared by rows that differ only in post-processing
    torch.set_num_threads(stages.final.train.threads)  # for the evaluation if an earlier call did all the training
    hours = 0.0
    if stages.align is not None:
        aligned = runs / f"seed-{seed}" / f"aligned-{short_hash(flatten(stages.align.model_dump(mode='json')))}"
        align = with_seed(stages.align, seed, aligned)
        hours += run_timed(aligned, "alignment", lambda: align_backbone(align, command="tools/ablate.py"))
        stages = stages.with_backbone(aligned)
    config = with_seed(stages.final, seed, folder)
    world = draw_world(config)
    if stages.teacher is not None:
        assert stages.labels is not None
        hash_of_teacher = RowStages(stages.teacher, None, None).hash()  # depends on the aligned model's folder, too
        teacher = with_seed(stages.teacher, seed, runs / f"seed-{seed}" / f"teacher-{hash_of_teacher}")
        hours += run_timed(teacher.output, "training", lambda: train_from_config(teacher, resume=True, evaluate=False))
        hours += run_timed(
            folder, "labeling", lambda: label_pairs(teacher.output, world, folder / "labels", stages.labels)
        )
        config = with_labels(config, teacher.output, folder / "labels")
    hours += run_timed(folder, "training", lambda: train_from_config(config, resume=True, evaluate=False))
    return TrainedRow(config, world, hours)


def run_row(name: str, stages: RowStages, seed: int, runs: Path) -> Record:
    """Train a row with one seed, and evaluate it on the world's three data sets."""
    config_hash = stages.hash()
    done = train_row(stages, seed, runs)
    config, world, folder = done.config, done.world, done.config.output
    trained = with_post_processing(load_detector(folder), config)
    output = runs / f"seed-{seed}" / f"{name}-{config_hash}"
    metrics = evaluate_run(trained, output=output).metrics
    naming = read_groups(output / "naming.json")
    decisions = read_groups(output / "decisions.json")
    transfer: dict[str, float] = {}
    for part in TRANSFER_PARTS:
        index = load_evaluation_index(world / "annotations" / f"{part}.json", world / "images" / part, "coco")
        transfer[part] = detect_all(trained, index, queries_of_index(trained, index)).compute()["AP"]
    everything, rare = decisions["all"], decisions.get("rare", {})
    device = resolve_device(config)
    return Record(
        row=name,
        seed=seed,
        AP=metrics["AP"],
        APr=metrics["APr"],
        APc=metrics["APc"],
        APf=metrics["APf"],
        coco_AP=transfer["coco"],
        o365_AP=transfer["objects365"],
        exhaustive_APr=metrics.get("APr_exhaustive"),
        rare_named=naming.get("rare", {}).get("boxes", {}).get("naming_after"),
        base_named=naming.get("base", {}).get("boxes", {}).get("naming_after"),
        cgF1=everything["cgF1"],
        cgF1_rare=rare.get("cgF1"),
        IL_MCC=everything["IL_MCC"],
        absent_per_image=(everything["at_own_threshold"] or everything)["absent_per_image"],
        ece_rare=rare.get("ECE"),
        brier_rare=rare.get("Brier"),
        hours=round(done.hours, 4),
        config_hash=config_hash,
        steps=stages.steps,
        device=device_name(device),
        instruction_set=f"{instruction_set()}, {torch.get_num_threads()} threads",
        versions={"python": platform.python_version(), **{package: version(package) for package in RECORDED_PACKAGES}},
        date=datetime.date.today().isoformat(),
        extra={f"naming_{group}": of_group["boxes"]["naming_after"] for group, of_group in naming.items()},
    )


def read_groups(file: Path) -> dict[str, Any]:
    """Read the groups of classes in a report, by name."""
    return {group["group"]: group for group in json.loads(file.read_text())["groups"]}


def with_post_processing(trained: TrainedDetector, config: TrainConfig) -> TrainedDetector:
    """Return a detector with the post-processing of a config, recalibrated if its calibration is for another."""
    trained = replace(trained, config=config)
    if config.train.calibration is None or trained.threshold is not None:
        return trained
    _, held_out = hold_out(config, load_training_index(config))
    assert held_out is not None
    return replace(trained, calibration=calibrate_detector(replace(trained, calibration=None), held_out))


def label_pairs(run: Path, world: Path, output: Path, labels: LabelsConfig | None) -> None:
    """Label the world's image-text pairs with a trained run."""
    assert labels is not None
    options = LabelOptions(**labels.model_dump(exclude={"shards"}))
    listed = shards_of_worker(world / "pairs", num_shards=labels.shards)
    pseudo_label_run(load_detector(run), LabelRequest(world / "pairs", output, options), listed=listed)


def with_labels(config: TrainConfig, teacher: Path, labels: Path) -> TrainConfig:
    """Return a student's config, which starts from the teacher's weights and trains on its labels."""
    values = config.model_dump(mode="json")
    values["init_from"] = str(teacher)
    values["data"]["pairs"]["labels"] = str(labels)
    return TrainConfig.model_validate(values)


def run_timed(folder: Path, stage: str, work: Callable[[], object]) -> float:
    """Run a stage and return its hours, or only return those stored in the folder if it was done before.

    The hours of interrupted calls are not counted.
    """
    file = folder / f"{stage}.hours.json"
    if file.exists():
        return float(json.loads(file.read_text())["hours"])
    start = time.monotonic()
    work()
    hours = (time.monotonic() - start) / 3600
    write_json(file, {"hours": hours})
    return hours


def with_steps(stages: RowStages, steps: int) -> RowStages:
    """Return the stages of the same row with another number of training steps.

    Raises:
        ConfigError: the row has a teacher, whose share of the steps is undefined.
    """
    if stages.teacher is not None:
        raise ConfigError("in a table with `lengths`, every row must have one stage")
    values = stages.final.model_dump(mode="json")
    values["train"]["steps"] = steps
    return replace(stages, final=TrainConfig.model_validate(values))
