"""One run of the ablation at miniature size: stages that several rows share run once."""

from functools import partial
from pathlib import Path

import pytest

import ovd.build.world
import ovd.data.world.build
from ovd.ablation.row import read_row, run_row
from ovd.config.tables import AblationRow, LabelsConfig
from ovd.data.world.settings import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = [
    "bank.templates=none", "bank.num_synonyms=0", "detector.channels=32", "detector.num_convs=1", "data.size=64",
    "data.workers=0", "train.steps=2", "train.batch_size=2", "train.warmup_steps=0", "train.sampled_classes=10",
    "train.save_every=100", "eval.candidates=100",
]  # fmt: skip
LABELS = LabelsConfig(queries="nouns", shards=1)


@pytest.fixture
def small_world(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        ovd.build.world,
        "Settings",
        partial(Settings, max_images_per_class=30, val_boxes_per_class=1, num_pairs=12, num_transfer_images=8),
    )
    monkeypatch.setattr(
        ovd.data.world.build, "draw_in_parallel", lambda function, count, _: map(function, range(count))
    )


@pytest.mark.slow
def test_rows_share_what_they_have_in_common(small_world, tmp_path):
    align = tmp_path / "align.yaml"
    align.write_text(
        "output: unused\ndata: {size: 64, workers: 0}\ntrain: {steps: 2, batch_size: 2, warmup_steps: 0}\n"
    )
    row = AblationRow(config=Path("three_ways.yaml"), teacher=Path("three_ways_base.yaml"), labels=LABELS, align=align)
    stages = {
        "first": read_row(row, CONFIGS, SMALL),
        "competing": read_row(row.model_copy(update={"overrides": ("eval.competition=20",)}), CONFIGS, SMALL),
        "plain": read_row(row.model_copy(update={"align": None}), CONFIGS, SMALL),
    }
    runs = tmp_path / "runs"
    records = {}
    for name, of_row in stages.items():
        before = {path: path.stat().st_mtime_ns for path in runs.glob("seed-3/*/step-*/manifest.json")}
        records[name] = run_row(name, of_row, 3, runs)
        after = {path: path.stat().st_mtime_ns for path in runs.glob("seed-3/*/step-*/manifest.json")}
        assert before == {path: after[path] for path in before}, "a finished stage was run again"
        new = len(after) - len(before)
        assert new == {"first": 3, "competing": 0, "plain": 2}[name]
    assert len({record.config_hash for record in records.values()}) == 3
    assert stages["first"].training_hash() == stages["competing"].training_hash()
    patient = [
        read_row(
            row.model_copy(update={"overrides": (*overrides, "train.patience=2", "train.eval_every=1")}), CONFIGS, SMALL
        )
        for overrides in ((), ("eval.competition=20",))
    ]
    assert patient[0].training_hash() != patient[1].training_hash()  # evaluation options decide the best weights
    [folder] = (runs / "seed-3").glob("aligned-????????????")
    used = [path for path in (runs / "seed-3").glob("*/config.yaml") if f"name: {folder}" in path.read_text()]
    assert len(used) == 2  # used by teacher and student
    for record in records.values():
        assert record.cgF1 is not None
        assert 0 <= record.cgF1 <= 100
        assert record.steps == 4
