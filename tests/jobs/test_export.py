"""`ovd export` and `ovd eval --onnx` on a trained run, in all three forms."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from small_export import unchecked

import ovd.__main__ as command
from ovd.build.trained import find_checkpoint, load_detector
from ovd.data.images.files import find_images
from ovd.experts.folder import ExpertDescription, write_expert
from ovd.files import sha256_of
from ovd.jobs.evaluate import _exported
from ovd.onnx import Predictor
from ovd.onnx.session import METADATA


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ovd", *map(str, arguments)])
    with unchecked():
        command.main()


def results(folder) -> list[dict]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_an_exported_run_has_the_metrics_of_the_run(start, miniature_world, tmp_path, monkeypatch):
    model = tmp_path / "model.onnx"
    run(monkeypatch, "export", start, model)
    run(monkeypatch, "eval", start, "--device", "cpu", "--output", tmp_path / "own")
    run(monkeypatch, "eval", start, "--onnx", model, "--output", tmp_path / "exported")
    own, exported = results(tmp_path / "own"), results(tmp_path / "exported")
    assert len(own) == len(exported) > 100
    for key in ("score", "bbox"):
        one, other = (np.sort(np.array([row[key] for row in rows]), axis=0) for rows in (own, exported))
        np.testing.assert_allclose(other, one, atol=1e-3 if key == "score" else 0.05)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("own", "exported")]
    assert metrics[0].keys() == metrics[1].keys()
    assert not (tmp_path / "exported" / "naming.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_smaller_forms_find_nearly_the_same(form, start, miniature_world, tmp_path, monkeypatch, capsys):
    images = find_images(miniature_world / "images")
    calibration = ["--images", tmp_path / "images"] if form == "int8" else []
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "damaged.jpg").write_bytes(b"no image")
    for number, image in enumerate(images):
        (tmp_path / "images" / f"{number}.jpg").symlink_to(image)
    run(monkeypatch, "export", start, tmp_path / "model.onnx")
    run(monkeypatch, "export", start, tmp_path / "small.onnx", f"--{form}", *calibration)
    assert ("images cannot be read and are left out; the first: " in capsys.readouterr().err) == (form == "int8")
    size, whole = ((tmp_path / name).stat().st_size for name in ("small.onnx", "model.onnx"))
    assert size < {"fp16": 0.6, "int8": 0.45}[form] * whole
    full, small = (Predictor.load(tmp_path / name, threads=1) for name in ("model.onnx", "small.onnx"))
    differences = []
    for image in images[:4]:
        expected, found = full(image, ["anchor", "umbrella"]), small(image, ["anchor", "umbrella"])
        differences.append(np.abs(expected.scores[:10] - found.scores[:10]).max())
    assert 0 < max(differences) < {"fp16": 0.01, "int8": 0.1}[form]


def test_an_exported_file_is_evaluated_as_the_run_of_its_weights_alone(start, tmp_path, monkeypatch, capsys):
    model, weights = tmp_path / "model.onnx", find_checkpoint(start).weights
    run(monkeypatch, "export", start, model, "--no-text")
    content = onnx.load(model)
    usage = json.loads({entry.key: entry.value for entry in content.metadata_props}[METADATA])
    assert usage["weights_sha256"] == sha256_of(weights)
    capsys.readouterr()
    trained = load_detector(start, "cpu")
    torch.set_num_threads(2)  # as ovd eval --threads 2
    session = _exported(trained, model)
    assert session.usage.weights_sha256 == sha256_of(weights)
    assert session._session.get_session_options().intra_op_num_threads == 2
    assert capsys.readouterr().err == ""
    onnx.helper.set_model_props(content, {METADATA: json.dumps(usage | {"weights_sha256": "0" * 64})})
    onnx.save(content, tmp_path / "other.onnx")
    with pytest.raises(SystemExit):
        run(monkeypatch, "eval", start, "--onnx", tmp_path / "other.onnx", "--output", tmp_path / "results")
    told = capsys.readouterr().err
    assert (
        f"other.onnx was exported from weights of sha256 {'0' * 64}; those of {weights} have {sha256_of(weights)}"
        in told
    )
    assert "Export this run again" in told
    assert not (tmp_path / "results" / "results.json").exists()
    del usage["weights_sha256"]  # as written by an earlier version
    onnx.helper.set_model_props(content, {METADATA: json.dumps(usage)})
    onnx.save(content, tmp_path / "old.onnx")
    assert _exported(trained, tmp_path / "old.onnx").usage.size == trained.config.data.size
    assert "old.onnx does not record which weights it was exported from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--int8"], "--int8 needs --images FOLDER"), (["--images", "images"], "--images needs --int8")],
)
def test_int8_and_images_belong_together(arguments, words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "export", "runs/none", "model.onnx", *arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_folder_of_an_expert_is_refused_by_name(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "ring" / "expert"
    description = ExpertDescription("aa", "runs/base", "path", 1, 0, ("red ring",), ((),), margin=0.1, config={})
    write_expert(folder, description, {"expert.text": torch.eye(2)})
    with pytest.raises(SystemExit):
        run(monkeypatch, "export", folder, tmp_path / "model.onnx")
    message = f"{folder} is the folder of an expert, and experts cannot be exported; export runs/base"
    assert message in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=rf"expert is the folder of an expert; use its .*runs/base, with --expert {folder}"
    ):
        load_detector(folder)


@pytest.mark.slow
def test_an_export_that_fails_leaves_the_files_of_an_earlier_one(start, tmp_path, monkeypatch, capsys):
    model, damaged = tmp_path / "model.onnx", tmp_path / "images" / "damaged.jpg"
    run(monkeypatch, "export", start, model)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("model.*")}
    damaged.parent.mkdir()
    for content, message in ((None, "has no images"), (b"no image", "damaged.jpg: ")):
        if content is not None:
            damaged.write_bytes(content)
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "export", start, model, "--int8", "--images", damaged.parent)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert len(before) == 3


@pytest.mark.slow
def test_without_a_text_tower_that_of_an_earlier_export_is_removed(start, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model.onnx"
    run(monkeypatch, "export", start, model)
    run(monkeypatch, "export", start, model, "--no-text")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert "model.text.onnx of an earlier export" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--no-text"):
        Predictor.load(model)(np.zeros((32, 32, 3), np.uint8), ["anchor"])
