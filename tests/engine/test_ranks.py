"""Training on two ranks against training on one: the same batches, the same losses, and an end for all at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import training
from run_files import assert_same_step, losses_of
from small_run import small_config, source_of

import ovd.evaluation.calibrate
import ovd.jobs.train
from ovd.build.batches import training_batches
from ovd.build.data import load_training_index, load_validation_index
from ovd.build.trained import load_detector
from ovd.config.labeling import LabelOptions
from ovd.config.training import TrainConfig
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataReport
from ovd.data.world.build import pair_scene
from ovd.data.world.settings import Settings
from ovd.distributed import process_group
from ovd.engine import checkpoint
from ovd.engine.notes import NO_SAMPLES
from ovd.experts.group import ExpertGroup
from ovd.jobs.evaluate import evaluate_run
from ovd.jobs.experts import check_expert
from ovd.jobs.fine_tune import fine_tune
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.jobs.train import train_from_config

ROOT = Path(__file__).parents[2]
STEPS = 6


def make_config(output: Path, world: Path, **changes) -> TrainConfig:
    train = {"device": "cpu", "steps": STEPS, "batch_size": 4, "precision": "float32", "threads": 1, "save_every": 3}
    train |= changes.pop("train", {})
    data = {"source": source_of(world, validated=False), **changes.pop("data", {})}
    return small_config(output, world, train=train, data=data, bank={"templates": "none"}, **changes)


def run_torchrun(config: TrainConfig, folder: Path) -> str:
    """Train on two ranks as a user starts them, and return what they print."""
    path = folder / "ranks.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "tools/train.py", str(path)], cwd=ROOT, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def train_on_two_ranks(config: TrainConfig, **options) -> None:
    with training(config, ranks=2, **options) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()


def assert_same_losses(run: Path, reference: Path, *, steps: int = STEPS) -> None:
    here, there = losses_of(run), losses_of(reference)
    assert len(here) == len(there) == steps
    for step, (one, other) in enumerate(zip(here, there, strict=True)):
        tolerance = 3e-5 if step < 3 else 2e-3  # rounding errors grow from step to step
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance), step


@pytest.fixture(scope="module")
def reference(tmp_path_factory, miniature_world) -> Path:
    run = tmp_path_factory.mktemp("one_rank") / "run"
    train_from_config(make_config(run, miniature_world), evaluate=False)
    return run


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, miniature_world) -> tuple[Path, str]:
    """An uninterrupted run on two ranks, and the output of both."""
    run = tmp_path_factory.mktemp("two_ranks") / "run"
    with training(make_config(run, miniature_world), ranks=2) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()
        return run, ranks.output(0) + ranks.output(1)


def test_two_ranks_train_as_one_does(reference, two_ranks):
    run, output = two_ranks
    assert "one of 2 ranks" in output
    assert output.count(f"step {STEPS}/{STEPS}") == 1  # only one rank prints
    assert_same_losses(run, reference)
    reports = [json.loads((run / name).read_text()) for name in ("data_report.json", "data_report.rank1.json")]
    of_one = json.loads((reference / "data_report.json").read_text())
    assert [report["used"]["sample"] for report in reports] == [2 * STEPS, 2 * STEPS]
    assert of_one["used"]["sample"] == 4 * STEPS


@pytest.mark.slow
def test_ranks_that_torchrun_starts_train_as_those_of_other_tests(two_ranks, miniature_world, tmp_path):
    output = run_torchrun(make_config(tmp_path / "run", miniature_world), tmp_path)
    assert "one of 2 ranks" in output
    assert output.count(f"step {STEPS}/{STEPS}") == 1
    assert_same_losses(tmp_path / "run", two_ranks[0])


def test_parts_of_a_batch_one_after_another_train_as_the_whole(reference, miniature_world, tmp_path):
    train_from_config(make_config(tmp_path / "run", miniature_world, train={"accumulate": 3}), evaluate=False)
    assert_same_losses(tmp_path / "run", reference)


@pytest.mark.parametrize("use", ["boxes", pytest.param("image_labels", marks=pytest.mark.slow)])
def test_two_ranks_train_on_pairs_as_one_does(reference, miniature_world, tmp_path, use):
    pairs, labels = tmp_path / "pairs", tmp_path / "labels"
    write_pair_shards(pairs, (pair_scene(k, "pairs", Settings()) for k in range(12)), pairs_per_shard=6)
    options = LabelOptions(queries="nouns", score_threshold=0.0, max_boxes=20)
    pseudo_label_run(load_detector(reference), LabelRequest(pairs, labels, options))
    paired = {"pairs": {"labels": str(labels), "shards": str(pairs), "share": 0.5, "keep": "one_to_one", "use": use}}
    train_from_config(make_config(tmp_path / "one", miniature_world, data=paired, train={"steps": 6}), evaluate=False)
    train_on_two_ranks(make_config(tmp_path / "two", miniature_world, data=paired, train={"steps": 6}))
    assert_same_losses(tmp_path / "two", tmp_path / "one", steps=6)


@pytest.mark.slow
def test_two_ranks_distill_on_boxes_and_pairs_as_one_does(reference, miniature_world, tmp_path):
    """Two ranks have the losses of one, although region distillation picks different numbers of points on each rank."""
    pairs, labels = tmp_path / "pairs", tmp_path / "labels"
    write_pair_shards(pairs, (pair_scene(k, "pairs", Settings()) for k in range(12)), pairs_per_shard=6)
    options = LabelOptions(queries="nouns", score_threshold=0.0, max_boxes=20)
    pseudo_label_run(load_detector(reference), LabelRequest(pairs, labels, options))
    data = {"pairs": {"labels": str(labels), "shards": str(pairs), "share": 0.5, "keep": "one_to_one"}}
    train = {"steps": 4, "region_distillation": {}}
    train_from_config(make_config(tmp_path / "one", miniature_world, data=data, train=train), evaluate=False)
    train_on_two_ranks(make_config(tmp_path / "two", miniature_world, data=data, train=train))
    assert_same_losses(tmp_path / "two", tmp_path / "one", steps=4)
    assert all(losses["distill"] > 0 for losses in losses_of(tmp_path / "two"))


@pytest.mark.slow
def test_a_rank_that_lacks_an_image_takes_as_many_parts_as_the_others(miniature_world, tmp_path):
    """A rank with a missing image computes as many parts as the others; the assignment here communicates in every part,
    so another number of parts would hang."""
    images = tmp_path / "images"
    shutil.copytree(miniature_world / "images", images)
    train = {"steps": 3, "accumulate": 2, "assignment": "task_aligned", "atss_steps": 0}
    source = {**source_of(miniature_world, validated=False), "train_images": str(images)}
    config = make_config(tmp_path / "run", miniature_world, train=train, data={"source": source})
    index = load_training_index(config, DataReport())
    batches = training_batches(config, index, first_samples=NO_SAMPLES, size_divisor=128)(0)
    (images / "train" / f"{next(batches).image_ids[3]:012d}.jpg").unlink()  # an image of the second rank
    train_on_two_ranks(config)
    assert len(losses_of(tmp_path / "run")) == 3
    assert json.loads((tmp_path / "run" / "data_report.rank1.json").read_text())["skipped_by_code"] == {"F8": 1}


def test_ranks_that_read_different_data_stop(miniature_world, tmp_path, monkeypatch):
    """Ranks that read different data stop, as can happen while the data or its labels are still being written."""

    def all_gather(value):
        return [value, {**value, "annotations": "another"}] if isinstance(value, dict) else [value]

    monkeypatch.setattr("ovd.jobs.training_setup.all_gather", all_gather)
    with pytest.raises(ValueError, match="the ranks have read different data"):
        train_from_config(make_config(tmp_path / "run", miniature_world), evaluate=False)


def test_a_batch_that_ranks_cannot_share_is_refused(miniature_world, tmp_path):
    config = make_config(tmp_path / "run", miniature_world, train={"batch_size": 3, "steps": 2})
    with training(config, ranks=2) as ranks:
        assert ranks.exit_codes() == [2, 2]
        assert (
            "the 3 images of a batch (train.batch_size, data.pairs.share) cannot be divided among 2 ranks"
            in ranks.output()
        )


def test_sigterm_saves_once_and_resuming_ends_with_the_same_bits(two_ranks, miniature_world, tmp_path):
    run = tmp_path / "run"
    config = make_config(run, miniature_world, train={"save_every": 1, "keep_checkpoints": 1})
    with training(config, ranks=2) as ranks:
        while checkpoint.latest(run) is None and ranks.is_running():
            time.sleep(0.01)
        ranks.send(signal.SIGTERM, rank=1)  # a signal to one rank stops both
        assert ranks.exit_codes() == [143, 143], ranks.output()
    found = checkpoint.latest(run)
    assert found is not None
    assert found.step < STEPS
    train_on_two_ranks(config, resume=True)
    assert_same_losses(run, two_ranks[0])
    assert_same_step(*(folder / f"step-{STEPS:06d}" for folder in (run, two_ranks[0])))


def without_checkpoints_on_the_second_rank() -> None:
    """Hide all checkpoints from the second rank, as on two nodes with separate disks."""
    if os.environ["RANK"] == "1":
        ovd.jobs.run_folder.latest = lambda *_, **__: None  # type: ignore[assignment]


def test_ranks_that_see_different_checkpoints_stop_before_the_first_step(two_ranks, miniature_world):
    run, _ = two_ranks
    before = {path.name for path in run.iterdir()}
    config = make_config(run, miniature_world)
    with training(config, ranks=2, fault=without_checkpoints_on_the_second_rank, resume=True) as ranks:
        assert ranks.exit_codes() == [2, 2]
        assert f"the ranks see different checkpoints (step-{STEPS:06d}, none)" in ranks.output()
    assert {path.name for path in run.iterdir()} == before


def without_the_folder_on_the_second_rank() -> None:
    if os.environ["RANK"] == "1":
        real = Path.exists
        Path.exists = lambda path, **more: path.name != "config.yaml" and real(path, **more)  # type: ignore[method-assign]


def test_a_run_folder_that_a_rank_does_not_see_stops_all(miniature_world, tmp_path):
    config = make_config(tmp_path / "run", miniature_world)
    with training(config, ranks=2, fault=without_the_folder_on_the_second_rank) as ranks:
        assert ranks.exit_codes() == [2, 2]
        assert "which rank 0 created, does not exist on this rank; it must be on a shared disk" in ranks.output(1)
    assert not list((tmp_path / "run").glob("step-*"))


def evaluate_validation(config: TrainConfig, *, output: str) -> None:
    with process_group():
        index = load_validation_index(config, DataReport())
        evaluate_run(load_detector(config.output), output=Path(output), index=index)


def evaluate_with_expert(config: TrainConfig, *, output: str, expert: str) -> None:
    with process_group():
        trained = load_detector(config.output, experts=ExpertGroup((Path(expert),)))
        index = load_validation_index(config, DataReport())
        evaluate_run(replace(trained, config=config), output=Path(output), index=index)


def dropped_boxes(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "of the detector and the experts dropped" in line]


def test_two_ranks_evaluate_as_one_does_and_write_once(reference, miniature_world, tmp_path):
    config = make_config(reference, miniature_world, data={"source": source_of(miniature_world)})
    index = load_validation_index(config, DataReport())
    assert index is not None
    trained = load_detector(reference)
    expected = evaluate_run(trained, output=tmp_path / "one", index=index)
    with training(config, ranks=2, job=evaluate_validation, output=str(tmp_path / "two")) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()
        assert "LVIS box AP" in ranks.output(0)
        assert "LVIS box AP" not in ranks.output(1)
    found = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(expected.metrics, abs=1e-6)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def stopped_in_the_calibration() -> None:
    """Let the main process, which alone calibrates, get a signal at its first image."""
    real = ovd.evaluation.calibrate.judge_detections

    def judge_detections(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    ovd.evaluation.calibrate.judge_detections = judge_detections


def test_two_ranks_evaluate_with_the_calibration_that_one_of_them_fits(miniature_world, tmp_path):
    """Two ranks evaluate with the calibration that one of them fits at the end of training, as `ovd eval` does later;
    the other waits for it, however long that takes, and both stop with it and go on with it."""
    source = source_of(miniature_world)
    train = {"steps": 2, "warmup_steps": 0, "calibration": {"images": 4, "names": 0, "name_bias": 0.2}}
    config = make_config(tmp_path / "run", miniature_world, data={"source": source}, train=train)
    with training(config, ranks=2, job=train_from_config, fault=stopped_in_the_calibration) as ranks:
        assert ranks.exit_codes() == [143, 143], ranks.output()
    assert not (config.output / "metrics.json").exists()
    with training(config, ranks=2, job=train_from_config, resume=True) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()
    assert len(losses_of(config.output)) == 2
    index = load_validation_index(config, DataReport())
    assert index is not None
    trained = load_detector(config.output)
    assert trained.threshold is not None
    expected = evaluate_run(trained, output=tmp_path / "one", index=index)
    found = json.loads((config.output / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx(expected.metrics, abs=1e-6)


@pytest.mark.slow
def test_two_ranks_fine_tune_an_expert_once_and_count_the_boxes_that_evaluation_drops(
    reference, miniature_world, tmp_path, capsys
):
    config = make_config(
        tmp_path / "run",
        miniature_world,
        data={"source": source_of(miniature_world)},
        train={"steps": 1, "warmup_steps": 1, "save_every": 1},
        expert={},
        init_from=str(reference),
    )
    with training(config, ranks=2, job=fine_tune, weight=1.0, measures_kept=False) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()
    check_expert(reference, tmp_path / "run")
    outcomes = json.loads((tmp_path / "run" / "fine_tuning.json").read_text())
    assert [outcome["detector"] for outcome in outcomes] == ["before", "expert"]

    expert = str(tmp_path / "run")
    capped = make_config(
        reference, miniature_world, data={"source": source_of(miniature_world)}, eval={"max_detections": 1}
    )
    evaluate_with_expert(capped, output=str(tmp_path / "one"), expert=expert)
    (counted,) = dropped_boxes(capsys.readouterr().out)
    with training(capped, ranks=2, job=evaluate_with_expert, output=str(tmp_path / "two"), expert=expert) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()
        assert [dropped_boxes(ranks.output(rank)) for rank in range(2)] == [[counted], []]
