"""Every config of the repository parses, builds its detector, and trains on no novel name."""

import json
import re
from pathlib import Path

import pytest
import real_layouts
from cores import THREADS

from ovd.build.data import load_training_index
from ovd.build.detector import build_detector_on_meta
from ovd.config.tables import AblationConfig
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.cost import count_cost
from ovd.data.category import Category
from ovd.data.report import DataReport
from ovd.data.vocabulary import check_no_leak
from ovd.jobs.train import train_from_config

CONFIGS = Path(__file__).parents[1] / "configs"
OTHERS = {
    "ablation",
    "align_rn50",
    "align_tiny",
    "alignment",
    "fine_tuning",
    "fine_tuning_few",
    "length",
    "pretrain_tiny_clip",
}
TRAINING = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OTHERS)
OF_THE_FIELD = [
    name
    for name in TRAINING
    if name.startswith(("lvis_base", "self_training_cc12m", "coco_zero_shot", "custom_coco_rn50"))
]


SLOW_TO_BUILD = {"lvis_base_nfnet_f6"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_TO_BUILD else []) for name in TRAINING]
)
def test_config_parses_and_builds_without_memory(name):
    config = load_config(CONFIGS / f"{name}.yaml", [], TrainConfig)
    detector = build_detector_on_meta(config)
    assert all(parameter.device.type == "meta" for parameter in detector.parameters())
    assert len(detector.strides) == 5


@pytest.mark.parametrize("name", OF_THE_FIELD)
def test_a_config_of_the_field_says_what_is_known_of_it(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for part in (f"configs/{name}.yaml", "Paper row:", "Hardware:", "Run so far:", "not measured"):
        assert part in comment


def test_what_a_config_says_that_was_measured_is_in_the_tables():
    results = (CONFIGS.parent / "docs" / "results.md").read_text()
    tables = [load_config(CONFIGS / f"{name}.yaml", [], AblationConfig) for name in ("ablation", "alignment")]
    configs_of_row = {name: row.config.stem for table in tables for name, row in table.rows.items()}
    claims = 0
    for path in CONFIGS.glob("*.yaml"):
        comment = " ".join(path.read_text().replace("\n#", " ").split())
        pattern = (
            r"Measured: AP ([\d.]+) and APr ([\d.]+) on the embedded world, means of five seeds, ([\d.]+) h .*?`(\w+)`"
        )
        if (found := re.search(pattern, comment)) is None:
            continue
        *claimed, row = found.groups()
        assert configs_of_row[row] == path.stem
        line = re.search(rf"^\| {row} \| 5 \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± .* \| ([\d.]+) \|$", results, re.M)
        assert line is not None, row
        assert claimed == [f"{float(line[1]):.1f}", f"{float(line[2]):.1f}", line[3]]
        claims += 1
    assert claims == 13


def test_lvis_base_vocabulary_has_no_name_of_a_rare_class(shared_data):
    rows = json.loads((shared_data / "lvis_v1_train_cat_info.json").read_text())
    categories = [
        Category(row["id"], row["name"], tuple(row["synonyms"]), row["frequency"], row["image_count"]) for row in rows
    ]
    base = [category for category in categories if category.frequency != "r"]
    assert (len(base), len(categories)) == (866, 1203)
    check_no_leak(base, [category for category in categories if category.frequency == "r"])


def test_counted_operations_of_the_tiny_backbone():
    config = load_config(CONFIGS / "gated.yaml", [], TrainConfig)
    small, large = (count_cost(config, size, size) for size in (192, 384))
    assert small.parameters == large.parameters
    assert large.forward_flops == pytest.approx(4 * small.forward_flops, rel=0.05)
    assert large.activation_bytes == pytest.approx(4 * small.activation_bytes, rel=0.1)
    assert small.training_flops == 3 * small.forward_flops
    frozen = count_cost(load_config(CONFIGS / "gated.yaml", ["detector.freeze_backbone=true"], TrainConfig), 192, 192)
    assert small.forward_flops < frozen.training_flops < small.training_flops
    assert frozen.activation_bytes < small.activation_bytes
    assert frozen.trained_parameters < small.trained_parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout_of"), [("lvis_base_rn50", real_layouts.lvis), ("custom_coco_rn50", real_layouts.coco)]
)
def test_a_real_backbone_trains_and_evaluates_on_a_miniature(name, layout_of, miniature_world, tmp_path):
    """A real backbone trains and evaluates on a miniature, with random weights, at 320 px, for 5 steps: the real code
    path on a CPU."""
    layout = layout_of(miniature_world, tmp_path)
    overrides = [
        f"output={tmp_path / 'run'}", f"bank.cache={tmp_path / 'banks'}", "clip.weights=random", "bank.templates=none",
        "bank.num_synonyms=0", "data.size=320", "data.scale=[0.8, 1.25]", "data.workers=1", "train.steps=5",
        "train.batch_size=2", "train.warmup_steps=1", f"train.threads={THREADS}", "eval.candidates=1000",
        *(f"data.source.{key}={value}" for key, value in vars(layout).items() if key != "format"),
    ]  # fmt: skip
    config = load_config(CONFIGS / f"{name}.yaml", overrides, TrainConfig)
    if name.startswith("lvis_base"):
        assert all(category.frequency != "r" for category in load_training_index(config, DataReport()).categories)
    metrics = train_from_config(config)
    assert ({"AP", "APr", "AP_fixed"} if name.startswith("lvis_base") else {"AP", "AP50"}) <= metrics.keys()
