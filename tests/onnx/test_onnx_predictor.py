"""The Python predictor of an exported detector finds the detector's own boxes, in a process without torch."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from small_export import num_without_equal, unchecked, unit_rows
from small_trained import small_trained

from ovd.build.text import evaluation_text
from ovd.build.trained import TrainedDetector
from ovd.config.training import EnsembleConfig
from ovd.data.images.image_file import ImageError
from ovd.export.detector import export_detector
from ovd.export.smaller import quantize, to_half
from ovd.files import sha256_of
from ovd.inference import Inference
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.onnx import Predictor
from ovd.onnx.session import METADATA, DetectionSession
from ovd.onnx.text import TextEncoder
from ovd.predictor import Predictor as TorchPredictor

ROOT = Path(__file__).parents[2]
NAMES = ["anchor", "chess_king_(outlined)", "cat face"]
NEEDED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")
"""Folders in site-packages of the packages that detection needs."""

SCRIPT = """
import json, sys

class OnlyNeeded:
    def find_spec(self, name, path=None, target=None):
        allowed = {"ovd", "numpy", "PIL", "onnxruntime", *sys.stdlib_module_names}
        if path is None and name not in allowed and not name.startswith("__editable__"):
            raise ImportError(f"{name} is not for detection")

sys.meta_path.insert(0, OnlyNeeded())
from ovd.onnx import Predictor

predictor = Predictor.load(sys.argv[1], threads=1)
found = predictor(sys.argv[2], json.loads(sys.argv[3]))
assert "torch" not in sys.modules
print(json.dumps({name: getattr(found, name).tolist() for name in ("boxes", "scores", "classes")}))
"""


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    settings = {"competition": 30, "max_detections": 50}
    train, bank = {"device": "cpu"}, {"templates": "short"}
    made = small_trained(tiny_clip, "anchor", data={"size": 96}, train=train, eval=settings, bank=bank)
    for part in (made.detector.head.distances, made.detector.head.quality):  # make the boxes differ
        assert isinstance(part, torch.nn.Conv2d)
        torch.nn.init.normal_(part.weight, std=0.1)
    made.detector.set_bias(-20.0)
    text = evaluation_text(made.config, tiny_clip, ["anchor", "umbrella"])
    calibration = ScoreCalibration(0.05, ScoreMap(0.6, 0.2, 1.0, -1.0), 0.31, made.config.eval, text)
    return replace(made, calibration=calibration)


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    with unchecked():
        files = export_detector(trained, path)
    assert sorted(file.name for file in files) == ["model.onnx", "model.text.json", "model.text.onnx"]
    return path


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor.load(model, threads=1)


@pytest.fixture
def image() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((170, 110)))


def test_it_finds_what_the_detector_finds(trained, predictor, image):
    torch_predictor = TorchPredictor(trained)
    for given in (image, image.transpose(1, 0, 2).copy(), image[:40, :30].copy(), Image.fromarray(image)):
        for names in (NAMES, NAMES[:1], "umbrella"):
            expected, found = torch_predictor(given, names), predictor(given, names)
            assert len(expected.scores) == len(found.scores) > 5
            assert num_without_equal(expected, found) == 0
    assert predictor.is_calibrated
    assert predictor.threshold == torch_predictor.threshold == 0.31


def test_another_size_and_rows_of_ones_own(trained, model, image, capsys):
    text = unit_rows(30, trained.clip.dim)
    inference = Inference(
        trained.detector, size=64, options=trained.config.eval, low_precision=False, calibration=trained.calibration
    )
    found = Predictor.load(model, size=64, threads=1).detect(image, text.numpy())
    assert capsys.readouterr().err == (
        "warning: scores were calibrated at 96 px; at 64 px they are less accurate as probabilities\n"
    )
    expected = inference.image(QueryTexts(text), image)
    assert len(expected.scores) == len(found.scores) > 5
    assert num_without_equal(expected, found) == 0


def test_a_detector_that_has_detected_is_exported_and_stays_as_it_is(trained, model, image, tmp_path):
    used = replace(trained, detector=copy.deepcopy(trained.detector))
    expected = TorchPredictor(used)(image, NAMES)
    weights = [(parameter.data_ptr(), parameter.stride()) for parameter in used.detector.parameters()]
    with unchecked():
        export_detector(used, tmp_path / "model.onnx", with_text=False)
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in used.detector.parameters()] == weights
    rows = TextEncoder(model, threads=1)(NAMES)
    assert num_without_equal(expected, Predictor.load(tmp_path / "model.onnx", threads=1).detect(image, rows)) == 0


@pytest.mark.parametrize("form", ["float32", "fp16", "int8"])
def test_every_form_says_which_weights_it_was_exported_from(form, trained, image, tmp_path):
    weights, model = tmp_path / "ema.safetensors", tmp_path / "model.onnx"
    weights.write_bytes(b"weights")
    with unchecked():
        export_detector(replace(trained, weights=weights), model, with_text=False)
    Image.fromarray(image).save(tmp_path / "image.png")
    if form == "fp16":
        to_half(model)
    elif form == "int8":
        quantize(model, [tmp_path / "image.png"], dim=trained.clip.dim)
    assert DetectionSession(model).usage.weights_sha256 == sha256_of(weights)


def test_text_rows_are_those_of_evaluation(trained, model):
    names = [*NAMES, "Coffee_cup/mug", "an umbrella", "\u65e5\u672c"]
    rows = TextEncoder(model, threads=1)(names)
    expected = evaluation_text(trained.config, trained.clip, names)
    torch.testing.assert_close(torch.from_numpy(rows), expected, atol=2e-6, rtol=1e-5)


def test_faults_have_the_words_of_the_torch_predictor(predictor, image, tmp_path):
    with pytest.raises(ImageError, match="file is missing"):
        predictor(tmp_path / "none.png", NAMES)
    with pytest.raises(ValueError, match="at least one"):
        predictor(image, [])
    with pytest.raises(ValueError, match=r"these positions are blank: \[1\] \(counted from 0\)"):
        predictor(image, ["anchor", " "])
    with pytest.raises(ValueError, match=r"text rows have the shape \(2, 3\)"):
        predictor.detect(image, np.ones((2, 3), dtype=np.float32))


def test_a_provider_that_is_not_there_is_named(model):
    with pytest.raises(ValueError, match=r"has no NoneSuchProvider; it has .*CPUExecutionProvider"):
        Predictor.load(model, providers=[("NoneSuchProvider", {"device_id": 0}), "CPUExecutionProvider"])


@pytest.mark.parametrize("content", ["{}", "[]", "none", '{"more": 1}'])
def test_a_model_of_another_version_is_refused_by_name(model, tmp_path, content):
    changed = onnx.load(model)
    onnx.helper.set_model_props(changed, {METADATA: content})
    onnx.save(changed, tmp_path / "other.onnx")
    with pytest.raises(
        ValueError, match=r"other\.onnx was not written by this version of ovd export: .*; export it again"
    ):
        DetectionSession(tmp_path / "other.onnx")


def test_without_its_text_tower_a_model_takes_rows(trained, model, image, tmp_path):
    shutil.copy(model, tmp_path)
    predictor = Predictor.load(tmp_path / "model.onnx", threads=1)
    assert len(predictor.detect(image, unit_rows(9, trained.clip.dim).numpy()).scores) > 5
    with pytest.raises(ValueError, match="without its text tower"):
        predictor(image, NAMES)


def test_what_a_graph_cannot_have_is_refused(trained, tmp_path, monkeypatch):
    section = trained.config.eval.model_copy(update={"ensemble": EnsembleConfig(base=0.1, novel=0.9)})
    beyond = replace(trained, config=trained.config.model_copy(update={"eval": section}))
    with pytest.raises(ValueError, match=r"eval\.ensemble of the run cannot be exported; --plain leaves it out"):
        export_detector(beyond, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_detector(trained, tmp_path / "model")
    other = replace(trained, clip=replace(trained.clip, tokenizer=lambda texts: trained.clip.tokenizer(texts)))
    with pytest.raises(ValueError, match=r"tokenizer .* is a function, but only CLIP's own .* --no-text"):
        export_detector(other, tmp_path / "model.onnx")
    monkeypatch.setattr("ovd.export.tracing.MAX_BYTES", 10_000_000)
    with pytest.raises(ValueError, match=r"model\.onnx would have 0\.0 GB of weights, .* a smaller backbone"):
        export_detector(trained, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_export_says_that_the_runs_prefilter_is_not_in_the_graph(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ovd.export.detector.write_detector", lambda graph, path, usage: None)
    export_detector(trained, tmp_path / "model.onnx", with_text=False)
    assert capsys.readouterr().err == ""
    section = trained.config.eval.with_prefilter(0.15)
    filtered = replace(trained, config=trained.config.model_copy(update={"eval": section}))
    export_detector(filtered, tmp_path / "model.onnx", with_text=False)
    assert capsys.readouterr().err.startswith(
        "warning: eval.prefilter=0.15 is not exported: the graph scores all names"
    )


def detected_in(python: list[str], model: Path, image: np.ndarray, folder: Path) -> dict[str, list]:
    """Detect in a process that can only import what detection needs."""
    Image.fromarray(image).save(folder / "image.png")
    arguments = [*python, "-c", SCRIPT, str(model), str(folder / "image.png"), json.dumps(NAMES)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_same(found: dict[str, list], predictor: Predictor, image: np.ndarray) -> None:
    expected = predictor(image, NAMES)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-4)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-6)
    assert found["classes"] == expected.classes.tolist()


def test_a_process_without_torch_detects(model, predictor, image, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    check_same(detected_in([sys.executable], model, image, tmp_path), predictor, image)


@pytest.mark.slow
def test_a_fresh_environment_needs_onnxruntime_numpy_and_pillow_alone(model, predictor, image, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    source, environment = tmp_path / "source", tmp_path / "environment"
    shutil.copytree(ROOT / "ovd", source / "ovd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", packages, source], check=True)
    for name in NEEDED:  # linked to those installed here, since there may be no network
        (packages / name).symlink_to(Path(onnxruntime.__file__).parents[1] / name)
    found = detected_in([str(environment / "bin" / "python"), "-I"], model, image, tmp_path)
    check_same(found, predictor, image)
