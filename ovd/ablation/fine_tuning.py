"""Comparison of ways to fine-tune on a foreign domain, with several seeds: AP gained there, AP kept on the world."""

import datetime
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic
import torch

from ovd.ablation.plots import Panel, draw_panels
from ovd.ablation.record_file import RECORD_CONFIG, append_record, read_records
from ovd.ablation.row import RowStages, changed_settings, label_pairs, read_groups, run_timed, train_row
from ovd.ablation.statistics import estimate, value_or_nan
from ovd.ablation.tables import markdown_table
from ovd.build.detector import resolve_device
from ovd.build.trained import find_checkpoint
from ovd.config.tables import FineTuningTable, LabelsConfig
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.data.world.foreign import ForeignSettings, build_foreign, few_images
from ovd.files import short_hash
from ovd.jobs.fine_tune import Outcome, fine_tune
from ovd.jobs.train import train_from_config
from ovd.metric import NO_TRUE_BOX, is_known
from ovd.precision import device_name

BEFORE = "before"
"""Name of the row for the starting detector, before fine-tuning."""
REPLAY = "share: 0.5, keep: one_to_one, min_score: 0.15, box_loss: true"
"""Settings of `data.pairs` for training on the starting detector's own labels, in rows with `replay`; with a box loss,
since the annotated boxes are in other images."""
METRICS = {"new_AP": "new AP", "kept_AP": "kept AP", "kept_APr": "kept APr", "kept_cgF1": "kept cgF1"}


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=RECORD_CONFIG)
class FineTuningRecord:
    """The record of one finished run. Metrics are in percent; -1 if there is no true box to measure them on."""

    row: str
    seed: int
    domain: str
    new_AP: float
    """COCO AP on the foreign validation set."""
    new_AP50: float
    kept_AP: float
    """LVIS AP on the world's validation set, over all classes."""
    kept_APr: float
    """LVIS AP on the world's validation set, over rare classes."""
    kept_cgF1: float | None
    """cgF1 on the world's validation set; None if the classes are in all images or in none."""
    minutes: float
    """Training time in minutes."""
    megabytes: float
    """Size in MB of the files that have to be stored in addition to the starting detector."""
    steps: int
    config_hash: str
    """Hash of the row's settings, the same for every seed."""
    device: str
    date: str


def row_hashes(table: FineTuningTable, folder: Path, start: RowStages) -> dict[str, str]:
    """Hash all settings that each row's metrics depend on; return the hashes by row, including `before`.

    Args:
        folder: folder that the configs of the rows are relative to.
        start: stages of the starting detector.
    """
    shared = [start.hash(), ForeignSettings(table.domain).key()]
    hashes = {BEFORE: short_hash(shared)}
    for name, row in table.rows.items():
        config = load_config(
            folder / row.config, ["output=.", "init_from=.", "train.seed=0", *row.overrides], TrainConfig
        )
        settings = changed_settings(config)
        settings = {key: value for key, value in settings.items() if not key.startswith("data.source.")}
        options = row.model_dump(mode="json", exclude={"config", "overrides", "title"}, exclude_defaults=True)
        hashes[name] = short_hash([*shared, settings, options, REPLAY if row.replay else None])
    return hashes


def run_fine_tuning(
    name: str, seed: int, table: FineTuningTable, folder: Path, start: RowStages, hashes: Mapping[str, str]
) -> list[FineTuningRecord]:
    """Train a row's starting detector if it is missing, fine-tune it, and evaluate both on both data sets.

    Args:
        folder: folder that the row's config is relative to.
        start: stages of the starting detector.
        hashes: hash of each row's settings (`row_hashes`).

    Returns:
        The records of the row and of `before`.
    """
    row = table.rows[name]
    before = train_row(start, seed, table.runs / "start")
    data = build_foreign(table.data, ForeignSettings(table.domain, seed=seed))
    output = table.runs / f"seed-{seed}" / f"{table.domain}-{name}"
    train = data / "train.json"
    if row.boxes_per_class is not None:
        train = few_images(data, row.boxes_per_class, seed)
    overrides = [
        f"output={output}",
        f"init_from={before.config.output}",
        f"data.source.train_annotations={train.resolve()}",
        f"data.source.train_images={(data / 'images' / 'train').resolve()}",
        f"data.source.val_annotations={(data / 'val.json').resolve()}",
        f"data.source.val_images={(data / 'images' / 'val').resolve()}",
        f"train.seed={seed}",
        *row.overrides,
    ]
    if row.replay:
        labels = table.runs / f"seed-{seed}" / f"replay-{before.config.output.name}" / "labels"
        labels.parent.mkdir(parents=True, exist_ok=True)
        run_timed(
            labels.parent,
            "labeling",
            lambda: label_pairs(before.config.output, before.world, labels, LabelsConfig(queries="nouns", shards=1)),
        )
        where = f"labels: {labels}, shards: {(before.world / 'pairs').resolve()}"
        overrides.append(f"data.pairs={{{where}, {REPLAY}}}")
    config = load_config(folder / row.config, overrides, TrainConfig)
    torch.set_num_threads(config.train.threads)
    hours = run_timed(output, "training", lambda: train_from_config(config, resume=True, evaluate=False))
    for path in (table.runs / f"seed-{seed}").glob(f"{table.domain}-*/eval-*-{BEFORE}"):
        if not (output / path.name).exists():  # the starting detector was evaluated for another row
            shutil.copytree(path, output / path.name)
    outcomes = {outcome.detector: outcome for outcome in fine_tune(config, weight=row.weight)}
    if config.expert is not None:
        chosen = "expert"
        stored = sum(path.stat().st_size for path in (output / "expert").iterdir())
    else:
        chosen = "after" if row.weight == 1 else "ensemble"
        stored = find_checkpoint(output if row.weight == 1 else output / "ensemble").weights.stat().st_size
    device = resolve_device(config)

    def record(of: str, outcome: Outcome, minutes: float, megabytes: float, steps: int) -> FineTuningRecord:
        decisions = read_groups(output / f"eval-kept-{outcome.detector}" / "decisions.json")
        return FineTuningRecord(
            row=of,
            seed=seed,
            domain=table.domain,
            new_AP=_per_cent(outcome.new["AP"]),
            new_AP50=_per_cent(outcome.new["AP50"]),
            kept_AP=_per_cent(outcome.kept["AP"]),
            kept_APr=_per_cent(outcome.kept["APr"]),
            kept_cgF1=None if (cgF1 := decisions["all"]["cgF1"]) is None else round(cgF1, 2),
            minutes=round(minutes, 2),
            megabytes=round(megabytes, 1),
            steps=steps,
            config_hash=hashes[of],
            device=device_name(device),
            date=datetime.date.today().isoformat(),
        )

    return [
        record(BEFORE, outcomes["before"], 0.0, 0.0, 0),
        record(name, outcomes[chosen], 60 * hours, stored / 1e6, config.train.steps),
    ]


def append_new_records(path: Path, records: Sequence[FineTuningRecord]) -> None:
    """Append the records of runs that the file does not have yet, since every row returns a record of `before`."""
    known = {(record.row, record.seed, record.config_hash) for record in read_records(path, FineTuningRecord)}
    for record in records:
        if (record.row, record.seed, record.config_hash) not in known:
            append_record(path, record)


def format_table(records: Sequence[FineTuningRecord], rows: Sequence[str]) -> str:
    """Format a Markdown table: mean over the seeds and 95 % interval of each metric, or one or two seeds' values."""
    lines = [["row", "seeds", *METRICS.values(), "MB", "minutes"]]
    for row in (BEFORE, *rows):
        row_records = [record for record in records if record.row == row]
        if not row_records:
            continue
        cells = [_cell(row_records, metric) for metric in METRICS]
        more = [
            f"{np.mean([getattr(record, name) for record in row_records]):.1f}" for name in ("megabytes", "minutes")
        ]
        lines.append([row, str(len(row_records)), *cells, *more])
    return markdown_table(lines) + "\n"


def draw_tradeoff(records: Sequence[FineTuningRecord], titles: Mapping[str, str], image: Path) -> None:
    """Draw AP on the new data beside AP on the detector's own data: every seed, mean and interval of each row.

    Args:
        titles: titles of the rows by name, from top to bottom; the starting detector is drawn above them.
    """
    known = [record for record in records if NO_TRUE_BOX not in (record.new_AP, record.kept_AP)]
    every_title = {BEFORE: "before fine-tuning", **titles}
    panels = [
        Panel(title, {row: {one.seed: getattr(one, metric) for one in known if one.row == row} for row in every_title})
        for metric, title in (("new_AP", "AP on the new data"), ("kept_AP", "AP kept on the detector's own data"))
    ]
    image.parent.mkdir(parents=True, exist_ok=True)
    draw_panels(panels, every_title, image, joined=False)


def _cell(records: Sequence[FineTuningRecord], metric: str) -> str:
    """Format mean and interval of a metric over the seeds; a dash if a value is unknown.

    For one or two seeds, whose interval is undefined or meaningless, the values are shown.
    """
    values = np.array([value_or_nan(getattr(record, metric), metric) for record in records])
    if np.isnan(values).any():
        return "-"
    value = estimate(values)
    if value.interval is None or value.num_values == 2:
        return ", ".join(f"{value:.1f}" for value in values)
    return f"{value.mean:.1f} ({value.interval[0]:.1f} to {value.interval[1]:.1f})"


def _per_cent(value: float) -> float:
    """Convert a metric to percent; without a true box it stays `NO_TRUE_BOX`."""
    return round(100 * value, 2) if is_known(value) else NO_TRUE_BOX
