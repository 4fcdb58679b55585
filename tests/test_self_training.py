"""All stages as a user runs them, for a few steps on a miniature world: train, label, train on both, ensemble,
table."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_files import assert_same_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import small_config

import ovd.build.trained
import ovd.build.world
from ovd.ablation.row import RowStages, read_row, run_row, with_steps
from ovd.build.batches import samples_drawn, samples_per_step
from ovd.build.pairs import load_labeled_pairs
from ovd.build.text import score_ensemble
from ovd.build.trained import load_detector
from ovd.config.labeling import LabelOptions
from ovd.config.tables import AblationConfig, AblationRow, LabelsConfig
from ovd.config.training import PairsConfig, TrainConfig
from ovd.config_files import ConfigError, load_config, parse_config
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataError
from ovd.data.world.build import pair_scene
from ovd.data.world.settings import Settings
from ovd.engine import checkpoint
from ovd.jobs.evaluate import evaluate_run
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.jobs.preflight import preflight
from ovd.jobs.train import train_from_config
from ovd.model.detection_options import SecondLookOptions

CONFIGS = Path(__file__).parents[1] / "configs"
ROW_SEED = 3
SMALL_WORLD = Settings(
    max_images_per_class=1, val_boxes_per_class=1, num_pairs=8, pairs_per_shard=4, num_transfer_images=6
)


def make_config(output: Path, world: Path, **changes) -> TrainConfig:
    train = {"steps": 4, "batch_size": 4}
    return small_config(output, world, train=train, bank={"templates": "none"}, **changes)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pair_shards(folder, (pair_scene(k, "pairs", Settings()) for k in range(16)), pairs_per_shard=6)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, miniature_world, pairs) -> Path:
    """The run folder of a teacher, with its labels of the pairs' nouns inside."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    train_from_config(make_config(run, miniature_world), evaluate=False)
    options = LabelOptions(queries="nouns", score_threshold=0.0, max_boxes=20)
    pseudo_label_run(load_detector(run), LabelRequest(pairs, run / "labels", options))
    return run


def student_config(output: Path, world: Path, teacher: Path, pairs: Path, **changes) -> TrainConfig:
    labeled = {"labels": str(teacher / "labels"), "shards": str(pairs), "keep": "top1_per_text", **changes}
    return make_config(output, world, init_from=str(teacher), init_state="training", data={"pairs": labeled})


def test_a_student_stopped_and_resumed_ends_with_the_same_bits(tmp_path, miniature_world, teacher, pairs, capsys):
    whole, resumed, labels = tmp_path / "whole", tmp_path / "resumed", tmp_path / "labels"
    shutil.copytree(teacher / "labels", labels)
    changes = {"labels": str(labels)}
    train_from_config(student_config(whole, miniature_world, teacher, pairs, **changes), evaluate=False)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "step-000004")
    config = student_config(resumed, miniature_world, teacher, pairs, **changes)
    train_from_config(config, resume=True, evaluate=False)
    first, second = (load_file(run / "step-000004" / "model.safetensors") for run in (whole, resumed))
    assert_same_tensors(first, second)
    started = load_file(teacher / "step-000004" / "ema.safetensors")
    assert any(not torch.equal(first[name], started[name]) for name in started)
    assert "no labels" not in capsys.readouterr().err
    for file in labels.glob("00002.*"):
        file.unlink()
    with pytest.raises(ValueError, match="started on other data: the labels changed since"):
        train_from_config(config, resume=True, evaluate=False)
    assert "1 of 3 shards without labels are left out" in capsys.readouterr().err


def test_preflight_says_how_many_of_the_labeled_pairs_are_drawn(tmp_path, miniature_world, teacher, pairs, capsys):
    config = student_config(tmp_path / "run", miniature_world, teacher, pairs)
    assert preflight(config)
    num_drawn = samples_per_step(config).pairs * config.train.steps
    labeled = re.search(r"(\d+) image-text pairs with", out := capsys.readouterr().out)
    assert labeled is not None
    assert f"and {num_drawn} image-text pairs, {num_drawn / int(labeled[1]):.3g} times the labeled ones" in out


def test_the_configured_texts_of_pairs_reach_a_step(tmp_path, miniature_world, teacher, pairs, monkeypatch):
    samplers = []

    def train(_, data, *__, **___) -> dict[str, float]:
        samplers.append(data.text_sampler)
        return {}

    monkeypatch.setattr("ovd.jobs.train.train", train)
    config = student_config(tmp_path / "run", miniature_world, teacher, pairs, sampled_texts=5)
    settings = config.train.model_copy(update={"pair_negatives": True})
    train_from_config(config.model_copy(update={"train": settings}), evaluate=False)
    (texts,) = samplers
    assert (texts.sampled_texts, texts.train.pair_negatives) == (5, True)
    assert len(texts.pair_texts) > 0


@pytest.mark.parametrize("use", ["boxes", pytest.param("image_labels", marks=pytest.mark.slow)])
def test_pairs_change_what_is_learned(tmp_path, miniature_world, teacher, pairs, use):
    run = tmp_path / use
    train_from_config(student_config(run, miniature_world, teacher, pairs, use=use), evaluate=False)
    lines = (run / "metrics.jsonl").read_text()
    assert ('"image"' in lines) == (use == "image_labels")
    # The images and their order are the same, but the pairs' images have other labels.
    other_labels = tmp_path / "labels"
    shutil.copytree(teacher / "labels", other_labels)
    for file in other_labels.glob("*.safetensors"):
        tensors, metadata = load_file(file), safe_open(file, framework="pt").metadata()
        for name in ("box_texts", "queries"):
            tensors[name] = tensors[name].flip(0)
        save_file(tensors, file, metadata)
    other = tmp_path / "other"
    changed = student_config(other, miniature_world, teacher, pairs, use=use, labels=str(other_labels))
    train_from_config(changed, evaluate=False)
    one, another = (load_file(folder / "step-000004" / "model.safetensors") for folder in (run, other))
    assert any(not torch.equal(one[name], another[name]) for name in one)


def test_loaded_pairs_are_the_labels_that_pass(miniature_world, teacher, pairs, tiny_clip, tmp_path):
    config = student_config(tmp_path, miniature_world, teacher, pairs)
    assert config.data.pairs is not None
    loaded = load_labeled_pairs(config.data.pairs, config.data.source, tiny_clip, first_id=50)
    boxes = sum(len(loaded.record(row).labels.boxes) for row in range(len(loaded)))
    assert boxes == loaded.box_counts["kept"] > 0
    for row in range(len(loaded)):
        record = loaded.record(row)
        assert len(np.unique(record.labels.classes)) == len(record.labels.classes)  # one box per text
        assert set(record.labels.classes) <= set(record.labels.image_texts)
    assert len(loaded.texts) > 0
    matching = config.data.pairs.model_copy(update={"caption_match": True})
    by_caption = load_labeled_pairs(matching, config.data.source, tiny_clip, first_id=50)
    # Nouns come from their own pair's caption, so the match removes none.
    assert by_caption.box_counts == {**loaded.box_counts, "caption_match": 0}
    of_all = config.data.pairs.model_copy(update={"keep": "all", "max_per_text": 1})
    single = load_labeled_pairs(of_all, config.data.source, tiny_clip, first_id=50)
    asked_for = np.concatenate([single.record(row).labels.classes for row in range(len(single))])
    assert len(asked_for) == len(np.unique(asked_for)) == single.box_counts["kept"] > 0
    assert single.box_counts["max_per_text"] > 0
    strict = config.data.pairs.model_copy(update={"min_score": 1.0})
    with pytest.raises(ValueError, match="passes the filters"):
        load_labeled_pairs(strict, config.data.source, tiny_clip, first_id=50)


def test_labels_that_are_only_below_the_data_root_are_named(tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVD_DATA", "sets")
    (tmp_path / "sets" / "labels").mkdir(parents=True)
    source = small_config(tmp_path / "run", tmp_path).data.source
    pairs = PairsConfig(labels=Path("labels"), shards=Path("shards"))
    with pytest.raises(ValueError, match=r"labels has no labels .* run ovd label-pairs first"):
        load_labeled_pairs(pairs, source, tiny_clip, first_id=0)
    (tmp_path / "sets" / "labels" / "00000.safetensors").touch()
    with pytest.raises(ValueError, match=r"starts at the current folder.* set data\.pairs\.labels=sets/labels$"):
        load_labeled_pairs(pairs, source, tiny_clip, first_id=0)


def test_classes_that_were_asked_for_everywhere_belong_to_the_pairs_where_they_were_found(
    miniature_world, teacher, pairs, tiny_clip, tmp_path
):
    options = LabelOptions(queries="classes", classes=("gear", "anchor", "bell", "kite"), score_threshold=0.0)
    pseudo_label_run(load_detector(teacher), LabelRequest(pairs, tmp_path / "labels", options))
    changes = {"labels": str(tmp_path / "labels"), "keep": "one_to_one", "min_score": 0.1}
    config = student_config(tmp_path, miniature_world, teacher, pairs, **changes)
    for use in ("boxes", "image_labels"):
        assert config.data.pairs is not None
        of_use = config.data.pairs.model_copy(update={"use": use})
        loaded = load_labeled_pairs(of_use, config.data.source, tiny_clip, first_id=50)
        records = [loaded.record(row).labels for row in range(len(loaded))]
        own = [record.image_texts.tolist() for record in records]
        assert sum(map(len, own)) < len(loaded.texts) * len(own)  # some texts are negatives of some images
        if use == "boxes":
            with_boxes = own
            assert own == [np.unique(record.classes).tolist() for record in records]
        else:
            assert own == with_boxes


def test_pairs_do_not_hide_that_all_other_images_are_missing_or_empty(tmp_path, miniature_world, teacher, pairs):
    config = student_config(tmp_path / "run", miniature_world, teacher, pairs)
    values = config.model_dump(mode="json")
    values["data"]["source"]["train_images"] = str(tmp_path)
    values["train"]["steps"] = 200
    with pytest.raises(DataError, match=r"none of \d+ images found in"):  # stops before the first step
        train_from_config(parse_config(values, TrainConfig, "test"), evaluate=False)
    for path in (miniature_world / "images" / "train").iterdir():
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / path.name).touch()
    with pytest.raises(DataError, match=r"5 of \d+ skipped .*file is empty|6 of \d+ skipped .*file is empty"):
        train_from_config(parse_config(values, TrainConfig, "test"), evaluate=False)


def test_labels_of_other_shards_are_refused(tmp_path, miniature_world, teacher, pairs, tiny_clip):
    others = tmp_path / "others"  # of a world with another seed: same names, keys and sizes
    write_pair_shards(others, (pair_scene(k, "pairs", Settings(seed=1)) for k in range(16)), pairs_per_shard=6)
    config = student_config(tmp_path, miniature_world, teacher, others)
    assert config.data.pairs is not None
    with pytest.raises(ValueError, match=r"was made from another version of 00000\.tar"):
        load_labeled_pairs(config.data.pairs, config.data.source, tiny_clip, first_id=50)
    (others / "manifest.json").unlink()
    write = student_config(tmp_path, miniature_world, teacher, others)
    assert write.data.pairs is not None
    with pytest.raises(ValueError, match=r"\.tar has \d+ bytes, but had \d+ when it was indexed"):
        load_labeled_pairs(write.data.pairs, write.data.source, tiny_clip, first_id=50)
    shutil.copytree(teacher / "labels", tmp_path / "labels")
    (tmp_path / "labels" / "00000.json").unlink()
    without = write.data.pairs.model_copy(update={"labels": tmp_path / "labels"})
    with pytest.raises(ValueError, match=r"00000\.json is not a valid ledger .*run ovd label-pairs again"):
        load_labeled_pairs(without, write.data.source, tiny_clip, first_id=50)


def test_labels_of_another_text_tower_are_refused(tmp_path, miniature_world, teacher, pairs, untrained_clip):
    config = student_config(tmp_path, miniature_world, teacher, pairs)
    assert config.data.pairs is not None
    with pytest.raises(ValueError, match="a different text tower"):
        load_labeled_pairs(config.data.pairs, config.data.source, untrained_clip, first_id=50)


def test_a_frozen_backbone_with_score_ensembling_evaluates_with_the_base_classes_it_was_trained_on(
    tmp_path, miniature_world
):
    changes = {"detector": {"freeze_backbone": True, "shortcuts": {"kind": "none"}}}
    run = tmp_path / "frozen"
    config = make_config(run, miniature_world, **changes, eval={"ensemble": {"base": 0.2, "novel": 0.9}})
    train_from_config(config, evaluate=False)
    trained = load_detector(run)
    ensemble = score_ensemble(trained, [*trained.classes, "a name that is new"])
    assert ensemble is not None
    assert ensemble.weights.tolist() == pytest.approx([0.2] * len(trained.classes) + [0.9])
    metrics = evaluate_run(trained, output=tmp_path / "evaluation").metrics
    assert 0 <= metrics["AP"] <= 1
    with pytest.raises(ConfigError, match="freeze_backbone"):
        make_config(run, miniature_world, eval={"ensemble": {}})


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    """Settings of the ablation's world, drawn with a few scenes."""
    monkeypatch.setattr(ovd.build.world, "Settings", lambda seed: replace(SMALL_WORLD, seed=seed))
    return [
        f"data.source.root={tmp_path / 'world'}",
        f"bank.cache={tmp_path / 'banks'}",
        "data.size=96",
        "data.workers=0",
        "data.classes=all",  # with one image per class, all classes are rare
        "train.steps=2",
        "train.warmup_steps=1",
        "train.batch_size=4",
        "detector.channels=32",
        "detector.num_convs=1",
    ]


def self_training_row(small_world: list[str]) -> RowStages:
    table = load_config(CONFIGS / "ablation.yaml", [], AblationConfig)
    row = table.rows["self_training"]
    assert row.teacher is not None
    student = read_row(AblationRow(config=row.config), CONFIGS, [*small_world, "data.pairs.min_score=0"]).final
    teacher = read_row(AblationRow(config=row.teacher), CONFIGS, small_world).final
    return RowStages(student, teacher, LabelsConfig(queries="nouns", shards=1, score_threshold=0.0))


def test_a_row_with_a_teacher_runs_all_stages_once(tmp_path, small_world, miniature_world, monkeypatch, capsys):
    drawn = tmp_path / "world" / replace(SMALL_WORLD, seed=ROW_SEED).key()
    shutil.copytree(miniature_world, drawn)  # its evaluation takes a second
    stages = self_training_row(small_world)

    def detect_all(_, index, *__, **___):
        return SimpleNamespace(compute=lambda: {"AP": {"coco": 0.1, "objects365": 0.2}[index.path.stem]})

    monkeypatch.setattr("ovd.ablation.row.detect_all", detect_all)  # for the transfer sets
    record = run_row("self_training", stages, ROW_SEED, tmp_path / "runs")
    assert record.steps == 4
    assert record.seed == ROW_SEED
    assert record.config_hash == stages.hash()
    assert record.hours > 0
    (evaluation,) = (tmp_path / "runs").glob(f"seed-{ROW_SEED}/self_training-*/metrics.json")
    metrics = json.loads(evaluation.read_text())["metrics"]
    assert (record.AP, record.APr, record.APc, record.APf) == tuple(metrics[f"AP{group}"] for group in ("", *"rcf"))
    assert (record.coco_AP, record.o365_AP) == (0.1, 0.2)
    assert "naming_all" in record.extra
    capsys.readouterr()
    again = run_row("self_training", stages, ROW_SEED, tmp_path / "runs")
    assert "step " not in capsys.readouterr().out  # nothing is trained twice
    assert replace(again, date=record.date) == record
    assert stages.teacher is not None
    assert with_steps(RowStages(stages.teacher, None, None), 1).steps == 1


@pytest.mark.slow
def test_a_row_with_a_second_look_shares_the_training_of_the_one_without(tmp_path, small_world, capsys):
    stages = self_training_row(small_world)
    record = run_row("self_training", stages, ROW_SEED, tmp_path / "runs")
    capsys.readouterr()
    student = stages.final
    looking = student.eval.model_copy(update={"second_look": SecondLookOptions(crops=2)})
    with_look = replace(stages, final=student.model_copy(update={"eval": looking}))
    assert with_look.hash() != stages.hash()
    looked = run_row("second_look", with_look, ROW_SEED, tmp_path / "runs")
    assert "step " not in capsys.readouterr().out  # both rows use the same training
    assert (looked.config_hash, looked.rare_named) == (with_look.hash(), record.rare_named)
    assert looked.cgF1 is not None
    assert looked.AP != record.AP


def test_every_row_of_the_table_has_as_many_steps_and_images_a_step():
    table = load_config(CONFIGS / "ablation.yaml", [], AblationConfig)
    stages = {name: read_row(row, CONFIGS, []) for name, row in table.rows.items()}
    assert len({row.steps for row in stages.values()}) == 1
    assert len({row.final.train.batch_size for row in stages.values()}) == 1
    assert len({row.hash() for row in stages.values()}) == len(stages)
    for row in stages.values():
        if row.teacher is not None:
            assert row.teacher.train.batch_size == row.final.train.batch_size


def test_a_rows_hash_is_of_the_settings_that_are_not_at_their_defaults():
    def hash_of(*overrides: str, labels: LabelsConfig | None = None) -> str:
        config = load_config(CONFIGS / "gated.yaml", list(overrides), TrainConfig)
        return RowStages(config, None, labels).hash()

    assert hash_of("data.flip=0.5", "train.seed=7", "data.source.seed=7", "output=elsewhere") == hash_of()
    others = {hash_of("data.flip=0.4"), hash_of("detector.shortcuts.kind=none"), hash_of("train.steps=1")}
    others.add(hash_of(labels=LabelsConfig(queries="nouns")))
    others.add(hash_of(labels=LabelsConfig(queries="nouns", shards=1)))
    assert len(others | {hash_of()}) == 6


def test_going_on_from_another_run_takes_its_average_and_the_optimizers_moments(tmp_path, miniature_world):
    def run(output: str, **changes) -> Path:
        values = make_config(tmp_path / output, miniature_world, **changes).model_dump(mode="json")
        values["train"] |= {"steps": 1, "decay": "constant", "warmup_steps": 0}
        train_from_config(TrainConfig.model_validate(values), evaluate=False)
        return tmp_path / output / "step-000001"

    first = run("first")
    onward = run("onward", init_from=str(tmp_path / "first"), init_state="training")
    anew = run("anew", init_from=str(tmp_path / "first"))
    drawn = [samples_drawn(checkpoint.read(folder)) for folder in (first, onward, anew)]
    assert drawn == [(4, 0), (8, 0), (4, 0)]
    before, after, fresh = (load_file(folder / "optimizer.safetensors") for folder in (first, onward, anew))
    squares = [name for name in before if "exp_avg_sq" in name]
    assert squares
    for name in squares:  # decayed by 0.999 and added to; a new optimizer starts at 0.001 of the gradient's squares
        assert (after[name] >= 0.998 * before[name]).all()
    assert any((fresh[name] < 0.5 * before[name]).any() for name in squares)
    average, started = (load_file(folder / "ema.safetensors") for folder in (onward, anew))
    assert any(not torch.equal(average[name], started[name]) for name in average)
    with pytest.raises(ConfigError, match="init_state"):
        make_config(tmp_path / "nothing", miniature_world, init_state="training")
