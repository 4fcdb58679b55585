"""The runs that can be resumed, and the settings that may change then."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from ovd.build.batches import samples_drawn
from ovd.build.trained import load_detector
from ovd.config.training import TrainConfig
from ovd.config_files import RENAMED_KEYS, ConfigError
from ovd.engine import checkpoint
from ovd.engine.notes import Notes
from ovd.files import sha256_of
from ovd.jobs.resume import MUTABLE_ON_RESUME, check_resumed, check_same_run, find_run
from ovd.jobs.run_folder import open_run_folder
from ovd.jobs.train import train_from_config
from ovd.text.encoder import text_tower_fingerprint


def config(**train) -> TrainConfig:
    return TrainConfig.model_validate({"output": "runs/a", "train": {"steps": 100, **train}})


def test_a_run_goes_on_with_its_own_settings_and_those_that_teach_nothing():
    stored = config().model_dump(mode="json")
    check_same_run(stored, config())
    check_same_run(stored, config(save_every=7).model_copy(update={"output": Path("elsewhere")}))


def test_the_page_lists_the_settings_that_may_change_in_a_resumed_run():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    listed = re.search(r"Only these may differ: (.*?)\. With", page, re.DOTALL)
    assert listed is not None
    names = {name.rstrip("*") for name in re.findall(r"`([^`]+)`", listed[1])}
    assert names == {*MUTABLE_ON_RESUME} - {"output"}  # `output` differs in a run that was moved


def test_a_start_that_does_not_exist_is_told_before_data_is_read_but_not_needed_by_a_resumed_run(tmp_path):
    (tmp_path / "first").mkdir()
    data = {"source": {"kind": "files", "format": "coco", "train_annotations": "none.json", "train_images": "none"}}
    settings = {"output": tmp_path / "run", "init_from": tmp_path / "frist", "train": {"steps": 100}, "data": data}
    mistyped = TrainConfig.model_validate(settings)
    with pytest.raises(ValueError, match=r"frist does not exist; did you mean .*/first\?$"):
        train_from_config(mistyped)
    assert not (tmp_path / "run").exists()
    stored = mistyped.model_dump(mode="json")
    checkpoint.save_weights(tmp_path / "run", tensors={}, config=stored, notes=Notes())
    assert find_run(mistyped, resume=True) is not None


def test_every_setting_that_differs_is_named():
    stored = config().model_dump(mode="json")
    message = r"was started with different settings: train\.seed was 0, is 3; train\.steps was 100, is 200"
    with pytest.raises(ValueError, match=message):
        check_same_run(stored, config(steps=200, seed=3))


def test_a_run_that_ends_by_its_evaluations_keeps_what_they_go_by():
    patient = config(eval_every=10, patience=2)
    stored = patient.model_dump(mode="json")
    other = TrainConfig.model_validate(stored | {"eval": {"nms_iou": 0.7}})
    with pytest.raises(ValueError, match=r"eval\.nms_iou was 0\.6, is 0\.7"):
        check_same_run(stored, other)
    impatient = config(eval_every=10).model_dump(mode="json")
    check_same_run(impatient, TrainConfig.model_validate(impatient | {"eval": {"nms_iou": 0.7}}))


def test_a_run_that_was_written_since_it_was_looked_at_is_left_alone(tmp_path):
    mine = config().model_copy(update={"output": tmp_path})
    found = find_run(mine, resume=True)
    assert found is None
    folder = checkpoint.save_weights(tmp_path, tensors={"weight": torch.zeros(1)}, config={}, notes=Notes())
    with pytest.raises(ValueError, match="another run wrote step-000000 while"), open_run_folder(mine, found):
        pass
    with open_run_folder(mine, checkpoint.read(folder)):
        pass
    damaged = tmp_path / "step-000007"
    shutil.copytree(folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"")
    with open_run_folder(mine, checkpoint.read(folder)):
        pass


def test_a_run_of_an_earlier_version_had_the_defaults_of_what_is_new():
    stored = config().model_dump(mode="json")
    del stored["train"]["accumulate"], stored["data"]["mosaic"]
    check_same_run(stored, config())
    with pytest.raises(ValueError, match=r"train\.accumulate was 1, is 2"):
        check_same_run(stored, config(accumulate=2))


def test_a_run_that_is_held_to_its_start_is_not_resumed_with_another_one(tiny_clip, tmp_path):
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"the weights that it started from")
    notes = Notes(text_tower=text_tower_fingerprint(tiny_clip), init_sha256=sha256_of(start))
    folder = checkpoint.save_weights(tmp_path / "run", tensors={"weight": torch.zeros(1)}, config={}, notes=notes)
    of_start = {"output": "runs/a", "init_from": str(start)}
    free, held = (
        TrainConfig.model_validate(of_start | {"train": {"steps": 1, "start_distillation": weight}})
        for weight in (0.0, 1.0)
    )
    check_resumed(checkpoint.read(folder), held, tiny_clip, {})
    start.write_bytes(b"others")
    check_resumed(checkpoint.read(folder), free, tiny_clip, {})
    with pytest.raises(ValueError, match="started from other weights than"):
        check_resumed(checkpoint.read(folder), held, tiny_clip, {})


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"text_tower": "another"}, "was trained with a different text tower"),
        ({"data": {"annotations": "before", "pairs": "now"}}, "was started on other data: the annotations changed"),
    ],
)
def test_a_run_with_another_text_tower_or_other_data_is_not_resumed(tiny_clip, tmp_path, notes, message):
    of_run = {"text_tower": text_tower_fingerprint(tiny_clip), "data": {"annotations": "now"}} | notes
    folder = checkpoint.save_weights(tmp_path, tensors={"a": torch.zeros(1)}, config={}, notes=Notes(**of_run))
    with pytest.raises(ValueError, match=message):
        check_resumed(checkpoint.read(folder), config(), tiny_clip, {"annotations": "now", "pairs": "now"})


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_run_with_a_key_of_an_earlier_version_is_refused_in_one_line(tmp_path, old, new):
    stored = config().model_dump(mode="json")
    (section, old_name), (_, new_name) = old.split("."), new.split(".")
    stored[section][old_name] = stored[section].pop(new_name)
    line = f"keys of an earlier version: {old} is now called {new}"
    with pytest.raises(ConfigError) as error:
        check_same_run(stored, config())
    assert str(error.value) == f"runs/a, as it was started: {line}"
    folder = checkpoint.save_weights(tmp_path, tensors={"weight": torch.zeros(1)}, config=stored, notes=Notes())
    for opened in (lambda: load_detector(tmp_path), lambda: samples_drawn(checkpoint.read(folder))):
        with pytest.raises(ConfigError) as error:
            opened()
        assert str(error.value) == f"{folder}/state.json: {line}"
