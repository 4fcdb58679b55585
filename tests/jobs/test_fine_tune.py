"""Fine-tuning as a user runs it, for a few steps: gains and losses are reported, and nothing is done twice."""

import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import real_layouts
from run_files import records_of
from safetensors.torch import load_file
from scripts import module_of
from small_fine_tuning import fine_tuning_config
from small_run import small_config

from ovd.build.data import load_validation_index
from ovd.build.trained import find_checkpoint
from ovd.config.training import EvalSection, TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError, DataReport
from ovd.engine.ensemble import save_ensemble
from ovd.evaluation.note import NOTE_FILE, write_note
from ovd.experts.group import NO_EXPERTS
from ovd.files import sha256_of
from ovd.jobs import fine_tune as module
from ovd.jobs.fine_tune import Outcome, _average_weights, _evaluate, _state_of_images, fine_tune, format_outcomes
from ovd.jobs.resume import check_same_init
from ovd.jobs.train import train_from_config


def test_fine_tuning_tells_what_is_gained_and_lost(start, miniature_world, tmp_path, capsys):
    layout = real_layouts.coco(miniature_world, tmp_path)
    source = {name: str(value) for name, value in vars(layout).items()}
    config = fine_tuning_config(
        tmp_path / "tuned", source, init_from=str(start), data={"classes": "all"}, train={"negatives": "all"}
    )
    outcomes = fine_tune(config, weight=0.25)
    assert [outcome.detector for outcome in outcomes] == ["before", "after", "ensemble"]
    assert all("APr" in outcome.kept and "APr" not in outcome.new for outcome in outcomes)
    assert all("AP50" in outcome.new for outcome in outcomes)
    stored = json.loads((tmp_path / "tuned" / "fine_tuning.json").read_text())
    assert stored == [vars(outcome) for outcome in outcomes]
    lines = format_outcomes(outcomes).splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:3] == ["detector", "new", "AP"]

    files = [next(folder.glob("step-*")) / "ema.safetensors" for folder in (start, tmp_path / "tuned")]
    before, after = map(load_file, files)
    (average,) = (tmp_path / "tuned" / "ensemble").glob("step-*/*.safetensors")
    averaged = load_file(average)
    name = "head.distances.weight"
    assert averaged[name].allclose(0.75 * before[name] + 0.25 * after[name])

    capsys.readouterr()
    assert fine_tune(config, weight=0.25) == outcomes
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"averaged with weight 0\.25, not 0\.5"):
        fine_tune(config, weight=0.5)
    otherwise = config.model_copy(update={"train": config.train.model_copy(update={"backbone_rate": 0.5})})
    with pytest.raises(ValueError, match=r"different settings: train\.backbone_rate was 0\.1, is 0\.5"):
        fine_tune(otherwise, weight=0.25)
    (tmp_path / "tuned" / "eval-new-after" / NOTE_FILE).write_text("{}")  # as if it were the note of another detector
    assert fine_tune(config, weight=0.25) == outcomes
    assert capsys.readouterr().out.count(f"tuned on {layout.val_annotations}") == 1
    content = json.loads(layout.train_annotations.read_text())
    content["annotations"].pop()
    layout.train_annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tuned was started on other data: the annotations changed"):
        fine_tune(config, weight=0.25)


@pytest.mark.slow
def test_evaluations_on_the_way_are_made_as_in_any_training(start, miniature_world, tmp_path):
    layout = real_layouts.coco(miniature_world, tmp_path)
    source = {name: str(value) for name, value in vars(layout).items()}
    train = {"negatives": "all", "eval_every": 1}
    config = fine_tuning_config(tmp_path / "c", source, init_from=str(start), data={"classes": "all"}, train=train)
    fine_tune(config, weight=1.0, measures_kept=False)
    steps, evaluated = ({r["step"] for r in records_of(tmp_path / "c", kind)} for kind in ("train", "evaluation"))
    assert evaluated == steps


def test_a_detector_that_cannot_be_averaged_with_its_start_is_refused_before_training(start, miniature_world, tmp_path):
    layout = real_layouts.coco(miniature_world, tmp_path)
    source = {name: str(value) for name, value in vars(layout).items()}
    wider = {"channels": 64, "num_convs": 1}
    config = fine_tuning_config(tmp_path / "c", source, init_from=str(start), data={"classes": "all"}, detector=wider)
    with pytest.raises(ValueError, match=r"differs from that of .* in: detector\.channels \(32 and 64\)"):
        fine_tune(config, weight=0.5)
    assert not (tmp_path / "c").exists()


def test_fine_tuning_needs_a_detector_and_measures_what_it_can(start, miniature_world, tmp_path, monkeypatch, capsys):
    layout = real_layouts.coco(miniature_world, tmp_path)
    source = {name: str(value) for name, value in vars(layout).items()}
    with pytest.raises(ValueError, match="set init_from to its run folder"):
        fine_tune(fine_tuning_config(tmp_path / "a", source, data={"classes": "all"}), weight=0.5)
    del source["val_annotations"]
    config = fine_tuning_config(tmp_path / "b", source, init_from=str(start), data={"classes": "all"})
    load = module.load_validation_index

    def load_own(of: TrainConfig) -> AnnotationIndex | None:
        if of.output != config.output:  # the start's own data is not on this machine
            raise DataError("F1", "val.json: annotation file cannot be read")
        return load(of)

    monkeypatch.setattr(module, "load_validation_index", load_own)
    with pytest.raises(DataError, match=r"val\.json: .*; this is the validation set of .*; use --no-kept"):
        fine_tune(config, weight=0.5)
    assert not (tmp_path / "b").exists()
    before, after, ensemble = fine_tune(config, weight=0.5, measures_kept=False)
    assert before.new == before.kept == after.new == after.kept == ensemble.new == ensemble.kept == {}
    assert capsys.readouterr().out.splitlines()[-1] == f"the fine-tuned detector is {tmp_path / 'b'}"
    told = format_outcomes((before, after, ensemble))
    assert told.startswith("nothing was evaluated: the new data have no validation set")
    assert "--no-kept" in told
    assert len(told.splitlines()) == 1


def test_what_is_missing_is_found_before_training(start, miniature_world, tmp_path, monkeypatch):
    layout = real_layouts.coco(miniature_world, tmp_path)
    source = {name: str(value) for name, value in vars(layout).items()}

    def refused(init_from: str) -> str:
        config = fine_tuning_config(tmp_path / "run", source, init_from=init_from, data={"classes": "all"})
        with pytest.raises(ValueError, match=str(tmp_path)) as raised:
            fine_tune(config, weight=0.5)
        return str(raised.value)

    missing = tmp_path / "none"
    assert refused(str(missing)).startswith(f"init_from={missing} does not exist; give the folder of a run")
    assert layout.val_images is not None
    next(path for path in layout.val_images.rglob("*") if path.is_file()).unlink()
    message = refused(str(start))
    assert " found in " in message
    assert "--no-kept" not in message
    load = module.load_validation_index

    def load_elsewhere(of: TrainConfig) -> AnnotationIndex | None:
        index = load(of)
        assert index is not None
        return index if of.output == tmp_path / "run" else replace(index, images_root=tmp_path / "gone")

    monkeypatch.setattr(module, "load_validation_index", load_elsewhere)
    message = refused(str(start))
    assert f"the folder of its images, {tmp_path / 'gone'}, does not exist; this is the validation set of" in message
    assert "--no-kept" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weight", [2, -0.5, float("nan")])
def test_a_weight_that_is_none_is_refused_before_training(weight, tmp_path):
    source = {"kind": "files", "format": "coco", "train_annotations": "none.json", "train_images": "none"}
    config = fine_tuning_config(tmp_path / "d", source, init_from="none", data={"classes": "all"})
    with pytest.raises(ValueError, match="from 0 to 1"):
        fine_tune(config, weight=weight)


def test_a_metric_without_a_true_box_is_a_dash_in_the_table():
    (_, row) = format_outcomes((Outcome("before", {"AP": -1.0, "AP50": 0.2}, {"AP": 0.0}),)).splitlines()
    assert row.split() == ["before", "-", "20.00", "0.00"]


def test_annotations_are_split_by_image(miniature_world, tmp_path, monkeypatch, capsys):
    split_annotations = module_of("tools/split_annotations.py")
    whole = miniature_world / "annotations" / "lvis_val.json"
    first, second = tmp_path / "a" / "first.json", tmp_path / "second.json"
    arguments = [str(whole), "--share", "0.7", "--first", str(first), "--second", str(second)]
    monkeypatch.setattr(sys, "argv", ["split_annotations.py", *arguments])
    split_annotations.main()
    content, parts = json.loads(whole.read_text()), [json.loads(path.read_text()) for path in (first, second)]
    ids = [{image["id"] for image in part["images"]} for part in parts]
    assert not ids[0] & ids[1]
    assert len(ids[0]) == round(0.7 * len(content["images"]))
    assert ids[0] | ids[1] == {image["id"] for image in content["images"]}
    for part, own in zip(parts, ids, strict=True):
        assert part["categories"] == content["categories"]
        assert part["annotations"] == [row for row in content["annotations"] if row["image_id"] in own]
    capsys.readouterr()
    first.unlink()
    with pytest.raises(ValueError, match=r"second\.json already exists"):
        split_annotations.main()
    assert not first.exists()  # nothing is written unless both can be
    second.unlink()
    for share, words in (("0.999", "second.json would have none"), ("0.001", "first.json would have none")):
        monkeypatch.setattr(sys, "argv", ["split_annotations.py", *arguments[:2], share, *arguments[3:]])
        with pytest.raises(ValueError, match=words):
            split_annotations.main()
    monkeypatch.setattr(sys, "argv", ["split_annotations.py", *arguments[:-1], str(first)])
    with pytest.raises(SystemExit):
        split_annotations.main()
    assert "are the same file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_start_that_was_trained_again_is_evaluated_again(miniature_world, tmp_path, monkeypatch):
    """A start that was trained again is evaluated again, even in the same folder with the same number of steps."""
    calls = []

    def evaluate(trained, *, output, index, note):
        calls.append(output.name)
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics.json").write_text(json.dumps({"metrics": {"AP": 0.1 * len(calls)}}))
        write_note(output, note)

    monkeypatch.setattr("ovd.jobs.fine_tune.evaluate_run", evaluate)
    run, folder = tmp_path / "start", tmp_path / "eval-kept-before"
    config = small_config(run, miniature_world, train={"steps": 1, "warmup_steps": 1, "save_every": 1})
    index = load_validation_index(config, DataReport())
    assert index is not None
    for seed in (0, 0, 1):
        if not run.exists() or seed:
            shutil.rmtree(run, ignore_errors=True)
            again = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
            train_from_config(again, evaluate=False)
        found = _evaluate(config, run, index, folder, NO_EXPERTS, None)
    assert len(calls) == 2
    assert found == {"AP": pytest.approx(0.2)}
    for options in (EvalSection(max_detections=1), EvalSection(max_detections=1)):  # evaluated once for new settings
        found = _evaluate(config, run, index, folder, NO_EXPERTS, options)
    assert found == {"AP": pytest.approx(0.3)}
    evaluated = folder / NOTE_FILE
    evaluated.write_text(evaluated.read_text()[:14])  # cut short by a kill
    assert _evaluate(config, run, index, folder, NO_EXPERTS, options) == {"AP": pytest.approx(0.4)}
    assert index.truth is not None
    smaller = replace(index, truth=replace(index.truth, areas_px=index.truth.areas_px / 2))
    assert _evaluate(config, run, smaller, folder, NO_EXPERTS, options) == {"AP": pytest.approx(0.5)}
    os.utime(index.encoded(0), (0, 0))  # as if the file held another picture
    for _ in range(2):
        assert _evaluate(config, run, smaller, folder, NO_EXPERTS, options) == {"AP": pytest.approx(0.6)}


def test_a_name_that_is_too_long_is_that_of_a_missing_image(miniature_world, tmp_path):
    index = load_validation_index(small_config(tmp_path, miniature_world))
    assert index is not None
    short, long = (replace(index, image_files=(name, *index.image_files[1:])) for name in ("gone.jpg", "gone" * 65))
    assert _state_of_images(short) == _state_of_images(long) != _state_of_images(index)


def test_a_start_that_was_trained_again_stops_what_was_tuned_from_it(miniature_world, tmp_path):
    """A start that was trained again cannot be used with what was tuned from it, nor with earlier averages of the
    two."""
    start, tuned = tmp_path / "start", tmp_path / "tuned"
    quick = {"steps": 1, "warmup_steps": 1, "save_every": 1}
    config = small_config(start, miniature_world, train=quick)
    train_from_config(config, evaluate=False)
    tuning = small_config(tuned, miniature_world, train=quick, init_from=str(start))
    train_from_config(tuning, evaluate=False)
    found = find_checkpoint(tuned)
    check_same_init(found, tuning)
    assert found.notes.init_sha256 == sha256_of(find_checkpoint(start).weights)
    save_ensemble(find_checkpoint(start), found, weight=0.5, output=tuned / "ensemble")
    shutil.rmtree(start)
    train_from_config(config.model_copy(update={"train": config.train.model_copy(update={"seed": 5})}), evaluate=False)
    with pytest.raises(ValueError, match=r"started from other weights than .*start has now \(sha256 [0-9a-f]{64} and"):
        check_same_init(found, tuning)
    with pytest.raises(ValueError, match=r"was averaged from older weights of .*start; delete it"):
        _average_weights(start, tuned, 0.5)
