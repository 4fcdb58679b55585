"""The report on a config's data before training, which matches what training then does."""

import json
import shutil
from pathlib import Path

import pytest
import real_layouts
from run_files import bytes_of
from small_run import small_config, source_of

from ovd.build.trained import find_checkpoint, load_detector
from ovd.data.report import DataError
from ovd.engine.ensemble import save_ensemble
from ovd.jobs.preflight import preflight
from ovd.jobs.prerequisites import check_prerequisites
from ovd.jobs.train import train_from_config


@pytest.fixture
def world(tmp_path, miniature_world) -> Path:
    """A copy of the miniature world that tests may damage."""
    shutil.copytree(miniature_world, tmp_path / "world")
    return tmp_path / "world"


def images(world: Path, part: str) -> list[Path]:
    return sorted((world / "images" / part).glob("*.jpg"))


def test_sound_data_pass_and_nothing_is_written(tmp_path, miniature_world, capsys):
    assert preflight(small_config(tmp_path / "run", miniature_world))
    out = capsys.readouterr().out
    for line in (
        "training: uses all ",
        " belong to classes that are not trained on\n",
        "evaluation: uses all of ",
        "names trained on",
        "6 steps on 1 rank draw 12",
    ):
        assert line in out
    assert not (tmp_path / "run").exists()


def test_damaged_images_of_both_sets_are_all_found(tmp_path, world, capsys):
    damaged = [*images(world, "train")[:2], images(world, "val")[3]]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:200])
    assert not preflight(small_config(tmp_path / "run", world))
    out = capsys.readouterr().out
    assert all(str(path) in out for path in damaged)
    assert "images; the others are left out and counted" in out
    assert "evaluation: stops, 1 of " in out


def test_a_validation_set_that_is_trained_on_is_said(tmp_path, miniature_world, capsys):
    layout = real_layouts.coco(miniature_world, tmp_path)
    source = {"kind": "files", "format": "coco", **{name: str(value) for name, value in vars(layout).items()}}
    num_images = len(json.loads(layout.train_annotations.read_text())["images"])
    for part in ("train", "val"):
        source["val_annotations"] = str(getattr(layout, f"{part}_annotations"))
        source["val_images"] = f"{getattr(layout, f'{part}_images')}/."
        config = small_config(tmp_path / "run", miniature_world, data={"source": source, "classes": "all"})
        preflight(config)
        words = (
            f"warning: {num_images:,} of {num_images:,} images of {layout.train_annotations} are also in the training "
            f"set, {layout.train_annotations}, so the validation metrics will be measured on images that are"
        )
        assert (words in capsys.readouterr().err) == (part == "train")


def test_many_damaged_images_stop_the_training_it_says(tmp_path, world, capsys):
    for path in images(world, "train")[:5]:
        path.write_bytes(b"")
    config = small_config(tmp_path / "run", world, data={"source": source_of(world, validated=False)})
    assert not preflight(config)
    assert "training: stops, error[F9]: 5 of " in capsys.readouterr().out


def test_what_stops_before_the_first_step_stops_here_too(tmp_path, world):
    images(world, "val")[0].unlink()
    with pytest.raises(DataError, match=r"only .* of .* images found in"):
        preflight(small_config(tmp_path / "run", world))
    path = world / "annotations" / "lvis_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(DataError, match="has a box to train on"):
        preflight(small_config(tmp_path / "run", world))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, "init_from=nowhere does not exist; give the folder of a run"),
        ({"bank": {"file": "none.safetensors"}}, "text bank none.safetensors cannot be read"),
        ({"detector": {"frozen_layers": 99}}, "frozen_layers"),
        ({"eval": {"second_look": {"crop": 50}}}, r"eval\.second_look\.crop and .* crops of 50 px; .*multiple of 16"),
        ({"train": {"batch_size": 3, "warmup_steps": 9}}, "train.warmup_steps is 9"),
        ({"train": {"eval_every": 2, "patience": 1}}, "train.patience needs evaluations"),
    ],
)
def test_settings_that_stop_before_the_first_step_stop_here_too(changes, message, tmp_path, miniature_world):
    data = {"data": {"source": source_of(miniature_world, validated=False)}}
    for check in (preflight, train_from_config):
        with pytest.raises(ValueError, match=message):
            check(small_config(tmp_path / "run", miniature_world, **data, **changes))


def test_a_training_state_that_does_not_fit_stops_before_the_text_bank(start, tmp_path, miniature_world):
    averaged = save_ensemble(*[find_checkpoint(start)] * 2, weight=0.5, output=tmp_path / "averaged")
    for init_from, message in (
        (start, r"parameter groups .* train the same parts, or start from the weights alone \(init_state=averaged\)"),
        (averaged, "has only weights and cannot be resumed; .* init_state=averaged"),
    ):
        more = {"init_from": str(init_from), "init_state": "training", "detector": {"frozen_layers": 1}}
        for check in (preflight, train_from_config):
            with pytest.raises(ValueError, match=message):
                check(small_config(tmp_path / "run", miniature_world, bank={"cache": str(tmp_path / "banks")}, **more))
    assert not (tmp_path / "banks").exists()


def test_a_folder_that_holds_a_run_is_said_unless_it_is_resumed(start, tmp_path, miniature_world, capsys):
    shutil.copytree(start, tmp_path / "run")
    config = load_detector(start).config.model_copy(update={"output": tmp_path / "run"})
    with pytest.raises(ValueError, match="already contains a run; add --resume"):
        preflight(config)
    assert preflight(config, resume=True)
    assert f"resuming from {tmp_path / 'run'}" in capsys.readouterr().out
    newest = max((tmp_path / "run").glob("step-*"))
    (newest / "ema.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"damaged checkpoint {newest}"):
        preflight(config, resume=True, strict_resume=True)


def test_without_a_box_to_evaluate_on_the_best_step_cannot_be_told(tmp_path, world, capsys):
    path = world / "annotations" / "lvis_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    config = small_config(tmp_path / "run", world, train={"eval_every": 2, "patience": 1})
    for check in (preflight, train_from_config):
        with pytest.raises(
            ValueError, match=r"train\.patience needs the validation AP, but .*lvis_val\.json has no box"
        ):
            check(config)
    preflight(small_config(tmp_path / "run", world))
    assert "has no boxes, so the validation metrics will be meaningless" in capsys.readouterr().err


def test_a_config_of_ones_own_in_the_run_folder_is_not_replaced(tmp_path, miniature_world):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("# my notes\nbase: ../other.yaml\n")
    for check in (preflight, train_from_config):
        with pytest.raises(ValueError, match=r"config\.yaml was not written by a run and would be replaced"):
            check(small_config(run, miniature_world))
    assert (run / "config.yaml").read_text() == "# my notes\nbase: ../other.yaml\n"


def test_a_checkpoint_is_no_run_folder(start, tmp_path, miniature_world):
    """A run in the folder of a checkpoint would be evaluated and resumed with that checkpoint's weights."""
    found = find_checkpoint(start)
    shutil.copytree(found.folder, tmp_path / "saved")
    before = bytes_of(tmp_path / "saved")
    for check in (preflight, train_from_config):
        with pytest.raises(ValueError, match="saved is the folder of a checkpoint or a saved detector"):
            check(small_config(tmp_path / "saved", miniature_world))
    with pytest.raises(ValueError, match="saved is the folder of a checkpoint or a saved detector"):
        save_ensemble(found, found, weight=0.5, output=tmp_path / "saved")
    assert bytes_of(tmp_path / "saved") == before


def test_a_place_that_cannot_be_written_to_and_a_missing_package_are_found(tmp_path, miniature_world, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place in ("file", "link"):
        with pytest.raises(ValueError, match=f"{place} is not a folder, or cannot be written to"):
            preflight(small_config(tmp_path / place / "run", miniature_world))
        with pytest.raises(ValueError, match=f"^bank.cache=.*{place} is not a folder, or cannot be written to"):
            preflight(small_config(tmp_path / "run", miniature_world, bank={"cache": str(tmp_path / place / "banks")}))
    monkeypatch.setattr("ovd.jobs.prerequisites.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"train\.wandb=mine needs the package wandb: pip install 'ovd\[wandb\]'"):
        preflight(small_config(tmp_path / "run", miniature_world, train={"wandb": "mine"}))
    assert not (tmp_path / "run").exists()


def test_random_weights_are_said(tmp_path, miniature_world, capsys):
    for weights, count in ((None, 0), ("random", 1)):
        clip = {"name": "RN50", "weights": weights}
        check_prerequisites(small_config(tmp_path / "run", miniature_world, clip=clip))
        assert capsys.readouterr().err.count("warning: clip.weights=random") == count


def test_classes_without_a_box_are_named_where_all_are_scored(tmp_path, miniature_world, capsys):
    layout = real_layouts.coco(miniature_world, tmp_path)
    content = json.loads(layout.train_annotations.read_text())
    content["categories"] += [{"id": 9999, "name": "gizmo"}]
    layout.train_annotations.write_text(json.dumps(content))
    source = {"kind": "files", "format": "coco", **{name: str(value) for name, value in vars(layout).items()}}
    for negatives in ("all", "sampled"):
        config = small_config(
            tmp_path / "run", miniature_world, data={"source": source, "classes": "all"}, train={"negatives": negatives}
        )
        preflight(config)
        warned = "trained on as absent from every image (train.negatives=all): " in capsys.readouterr().err
        assert warned == (negatives == "all")


def test_a_path_from_the_current_folder_is_named_with_the_data_root(tmp_path, miniature_world, monkeypatch):
    layout = real_layouts.coco(miniature_world, tmp_path / "data" / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVD_DATA", raising=False)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    source = {"kind": "files", "format": "coco", **{name: str(value) for name, value in vars(layout).items()}}
    source["train_annotations"] = str(layout.train_annotations.relative_to(tmp_path))
    config = small_config(tmp_path / "run", miniature_world, data={"source": source, "classes": "all"})
    within = layout.train_annotations.relative_to(tmp_path / "data")
    with pytest.raises(DataError, match=rf"data \(OVD_DATA\); it exists in the current folder, so write {within}$"):
        preflight(config)
    monkeypatch.setenv("OVD_DATA", "elsewhere")
    with pytest.raises(DataError, match=rf"so write {layout.train_annotations}$"):
        preflight(config)
    monkeypatch.delenv("OVD_DATA")
    layout.train_annotations.unlink()
    words = (
        r"mine/\S+ does not exist: data.source.train_annotations=\S+ is relative to the data root, data \(OVD_DATA\)$"
    )
    with pytest.raises(DataError, match=words):
        preflight(config)


def test_a_folder_of_images_that_is_missing_is_named_with_key_and_data_root(tmp_path, miniature_world, monkeypatch):
    layout = real_layouts.coco(miniature_world, tmp_path / "data" / "mine")
    monkeypatch.setenv("OVD_DATA", str(tmp_path / "data"))
    source = {"kind": "files", "format": "coco"} | {name: str(value) for name, value in vars(layout).items()}
    source["train_images"] = "mine/gone"
    config = small_config(tmp_path / "run", miniature_world, data={"source": source, "classes": "all"})
    relative = f"data.source.train_images=mine/gone is relative to the data root, {tmp_path}/data"
    words = rf"mine/gone, does not exist: {relative} \("
    with pytest.raises(DataError, match=words):
        preflight(config)
