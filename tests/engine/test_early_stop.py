"""Early stopping: a run ends when evaluations no longer improve, and keeps the averaged weights of the best one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_files import assert_same_step, assert_same_tensors, records_of
from safetensors.torch import load_file
from small_run import small_config, source_of

import ovd.jobs.train
from ovd.build.model_card import metrics_of
from ovd.build.trained import load_detector
from ovd.config.training import TrainConfig
from ovd.engine.checkpoint import latest
from ovd.engine.early_stop import step_of_average
from ovd.engine.notes import EarlyStopNotes
from ovd.files import write_json
from ovd.jobs.run_folder import is_finished
from ovd.jobs.train import train_from_config

AP_OF_STEPS = {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}
"""AP of each evaluation in turn.

Step 4 is only as good as step 2, so a patience of 2 ends the run before step 5; the fifth value is that of the last
evaluation, which measures the result.
"""


def stopping(output: Path, world: Path, **train) -> TrainConfig:
    return small_config(output, world, train={"eval_every": 1, "save_every": 1, "keep_checkpoints": 10, **train})


def watched_evaluations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Replace evaluations by the AP values above, and return a list that gets the averaged weights of each."""
    seen: list[dict[str, torch.Tensor]] = []

    def evaluation_of(config, clip, validation, checkpoints):
        def evaluate(averaged, stop):
            seen.append({name: tensor.cpu().clone() for name, tensor in averaged.state_dict().items()})
            return {"AP": AP_OF_STEPS.get(len(checkpoints.notes.early_stop.evaluations) + 1, 0.0)}

        return evaluate

    monkeypatch.setattr(ovd.jobs.train, "_evaluation_of", evaluation_of)
    return seen


@pytest.fixture
def evaluations(monkeypatch) -> list[dict[str, torch.Tensor]]:
    return watched_evaluations(monkeypatch)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, miniature_world) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A run that ended with a patience of 2, and the weights of its evaluations; tests change copies of it."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = watched_evaluations(patch)
        train_from_config(stopping(run, miniature_world, patience=2))
    return run, seen


def test_the_best_average_is_the_result(stopped, tmp_path, miniature_world, evaluations):
    config = stopping(tmp_path / "run", miniature_world, patience=2)
    shutil.copytree(stopped[0], config.output)
    found = latest(config.output)
    assert found is not None
    assert found.step == 4
    assert is_finished(found, config)
    assert found.notes.early_stop == EarlyStopNotes(((1, 0.1), (2, 0.5), (3, 0.4), (4, 0.5)), is_over=True)
    assert not found.attached()
    assert step_of_average(found.notes, found.step) == 2
    write_json(config.output / "metrics.json", {"metrics": {"AP": 0.5}})
    assert metrics_of(load_detector(config.output)) == {"metrics": {"AP": 0.5}}  # the metrics on a model card
    assert metrics_of(load_detector(config.output / "step-000003")) is None
    assert_same_tensors(load_file(found.weights), stopped[1][1])
    assert_same_tensors(stopped[1][-1], stopped[1][1])  # the last evaluation measures the result, under its step
    logged = {record["step"]: record["metrics"]["AP"] for record in records_of(config.output, "evaluation")}
    assert logged == {1: 0.1, 2: 0.9, 3: 0.4, 4: 0.5}

    train_from_config(config, resume=True)  # the resumed run only evaluates
    assert len(evaluations) == 1
    assert_same_tensors(evaluations[0], load_file(found.weights))
    assert sorted(path.name for path in config.output.glob("step-*")) == [f"step-00000{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_resumed_it_ends_at_the_same_step_with_the_same_bits(step, stopped, tmp_path, miniature_world, evaluations):
    resumed = stopping(tmp_path / "resumed", miniature_world, patience=2)
    shutil.copytree(stopped[0], resumed.output)
    for folder in resumed.output.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    train_from_config(resumed, resume=True)
    last = [run / "step-000004" for run in (stopped[0], resumed.output)]
    assert_same_step(*last)
    extra = [json.loads((folder / "state.json").read_text())["extra"] for folder in last]
    assert extra[0] == extra[1]


@pytest.mark.slow
def test_with_enough_patience_all_steps_are_taken_and_the_best_is_kept(tmp_path, miniature_world, evaluations):
    config = stopping(tmp_path / "run", miniature_world, patience=5)
    train_from_config(config)
    found = latest(config.output)
    assert found is not None
    assert found.step == config.train.steps
    assert_same_tensors(load_file(found.weights), evaluations[4])


def test_a_resume_evaluates_as_often(stopped, tmp_path, miniature_world):
    run = tmp_path / "run"
    shutil.copytree(stopped[0], run)
    shutil.rmtree(run / "step-000004")
    other = stopping(run, miniature_world, patience=2, eval_every=2)
    with pytest.raises(ValueError, match=r"different settings: .*train\.eval_every"):
        train_from_config(other, resume=True)


def test_patience_needs_evaluations_on_a_validation_set(tmp_path, miniature_world):
    with pytest.raises(ValueError, match=r"train\.eval_every"):
        small_config(tmp_path, miniature_world, train={"patience": 2})
    source, train = source_of(miniature_world, validated=False), {"eval_every": 1, "patience": 2}
    config = small_config(tmp_path / "run", miniature_world, data={"source": source}, train=train)
    for evaluate in (False, True):
        with pytest.raises(ValueError, match=r"needs evaluations on a validation set \(data\.source\.val_annotations"):
            train_from_config(config, evaluate=evaluate)


def test_it_evaluates_for_a_caller_who_needs_no_evaluation(tmp_path, miniature_world, evaluations):
    config = stopping(tmp_path / "run", miniature_world, patience=1, steps=2)
    assert train_from_config(config, evaluate=False) == {"AP": 0.4}  # from its third and last evaluation
    found = latest(config.output)
    assert found is not None
    assert found.notes.early_stop == EarlyStopNotes(((1, 0.1), (2, 0.5)), is_over=True)
