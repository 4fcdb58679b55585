"""Saved and shared detectors: the folder detects as the run did, and the card has the measured metrics."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.hub_mixin
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from run_files import bytes_of
from safetensors.torch import load_file, save_file

from ovd.build.detector import build_detector
from ovd.build.prompts import Example, Prompt
from ovd.build.trained import TrainedDetector, build_inference, find_checkpoint, load_detector
from ovd.clip.load import TINY_CLIP, load_clip
from ovd.clip.save import WEIGHTS_FILE, copy_clip, save_clip
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.engine import checkpoint
from ovd.engine.ensemble import save_ensemble
from ovd.engine.notes import Notes
from ovd.evaluation.note import EvaluationNote, write_note
from ovd.experts.group import NO_EXPERTS, ExpertGroup
from ovd.files import sha256_of
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.predictor import Predictor
from ovd.text.encoder import text_tower_fingerprint

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
NAMES: list[str | Prompt] = ["anchor", "umbrella", Prompt("a thing", images=(Example(IMAGE[:30, :40]),))]
SOURCE = {
    "kind": "files",
    "format": "coco",
    "train_annotations": "secret/place/mine.json",
    "train_images": "secret/place",
    "val_annotations": "secret/place/val.json",
    "val_images": "secret/place",
}
METRICS = {
    "engine": "hotcoco",
    "metrics": {"AP": 0.4567, "APr": -1.0},
    "protocols": {"LVIS v1 (ordinary AP)": ["AP", "APr"]},
    "notes": ["3 images have no box"],
}


def trained_detector(clip_name: str, clip_weights: str | None = None) -> TrainedDetector:
    values = {
        "output": "none",
        "clip": {"name": clip_name, "weights": clip_weights},
        "detector": {"channels": 32, "num_convs": 1},
        "data": {"size": 96, "source": SOURCE},
        "train": {"steps": 7, "precision": "float32", "seed": 5},
    }
    config = parse_config(values, TrainConfig, "test")
    torch.manual_seed(config.train.seed)
    clip = load_clip(clip_name, clip_weights)
    detector = build_detector(config, clip).eval()
    for parameter in detector.parameters():
        if parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 0.1)
    text = torch.nn.functional.normalize(torch.randn(2, clip.dim), dim=1)
    calibration = ScoreCalibration(0.02, ScoreMap(0.9, 1.1, 0.1, 0.2), 0.31, config.eval, text)
    mean_example = 0.3 * torch.nn.functional.normalize(torch.randn(clip.dim), dim=0)
    return TrainedDetector(detector, config, clip, ("anchor", "umbrella"), calibration, mean_example=mean_example)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder as training leaves it, with one checkpoint and its metrics."""
    trained = trained_detector("tiny")
    folder = tmp_path_factory.mktemp("hub") / "run"
    assert trained.calibration is not None
    assert trained.mean_example is not None
    checkpoint.save_weights(
        folder,
        tensors=trained.detector.state_dict(),
        config=trained.config.model_dump(mode="json"),
        notes=Notes(
            text_tower=text_tower_fingerprint(trained.clip),
            classes=trained.classes,
            calibration=trained.calibration.to_json(),
        ),
        attached={"trained_text": trained.calibration.trained_text, "mean_example": trained.mean_example},
    )
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "metrics.jsonl").write_text('{"kind": "evaluation", "step": 0, "metrics": {"AP": 0.4567}}\n')
    return folder


def assert_same(found, expected) -> None:
    for name in ("boxes", "scores", "classes"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_folder_detects_as_the_run_did(run, tmp_path):
    expected = Predictor.load(run)
    expected.save_pretrained(tmp_path / "given")
    assert {path.name for path in (tmp_path / "given").iterdir()} == {
        "README.md", "attached.safetensors", "config.json", "manifest.json", "metrics.json", "model.safetensors",
        "state.json",
    }  # fmt: skip
    for predictor in (Predictor.from_pretrained(tmp_path / "given"), Predictor.load(tmp_path / "given")):
        assert_same(predictor(IMAGE, NAMES), expected(IMAGE, NAMES))
        assert predictor.threshold == expected.threshold == 0.31
    again = Predictor.from_pretrained(tmp_path / "given", size=64)
    assert not torch.equal(again(IMAGE, NAMES).boxes, expected(IMAGE, NAMES).boxes)
    Predictor.from_pretrained(tmp_path / "given").save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


def test_a_folder_that_holds_a_detector_gets_no_other(run, tmp_path):
    """A detector is not saved over another, whose metrics and card would be mistaken for its own."""
    Predictor.load(run).save_pretrained(tmp_path / "given")
    before = bytes_of(tmp_path / "given")
    with pytest.raises(ValueError, match="given already contains a detector"):
        Predictor(replace(trained_detector("tiny"), calibration=None)).save_pretrained(tmp_path / "given")
    assert bytes_of(tmp_path / "given") == before
    for name in ("config.json", "metrics.json"):
        folder = tmp_path / f"other with {name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=f"has a {name} that is not of ovd"):
            Predictor(replace(trained_detector("tiny"), calibration=None)).save_pretrained(folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "{}"}


def test_a_run_gets_no_saved_detector_in_its_folder(run, tmp_path):
    """A detector saved beside the checkpoints of a run would be loaded in their place after further training."""
    shutil.copytree(run, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(ValueError, match="run contains a run, in whose place"):
        Predictor.load(tmp_path / "run").save_pretrained(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_a_run_without_the_optimizers_state_is_saved_with_its_metrics(run, tmp_path):
    """The optimizer's state, which is twice as large as the weights, may be deleted once a run is finished."""
    shutil.copytree(run, tmp_path / "run")
    manifest = tmp_path / "run" / "step-000000" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "optimizer.safetensors": "0"}))
    Predictor.load(tmp_path / "run").save_pretrained(tmp_path / "given")
    assert json.loads((tmp_path / "given" / "metrics.json").read_text()) == METRICS


@pytest.mark.parametrize("killed_at", ["README.md", "metrics.json", "model.safetensors", "manifest.json"])
def test_an_interrupted_save_is_repeated_into_the_same_folder(killed_at, run, tmp_path, monkeypatch):
    """A save that is killed before it moves a file to its place leaves nothing that a second one refuses or keeps."""
    Predictor.load(run).save_pretrained(tmp_path / "whole" / "given")
    given, replace_file = tmp_path / "given", Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target == given / killed_at:
            raise KeyboardInterrupt
        return replace_file(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process removes no temporary folder
        with pytest.raises(KeyboardInterrupt):
            Predictor.load(run).save_pretrained(given)
    with pytest.raises(ValueError, match="neither a run folder nor a checkpoint folder"):
        Predictor.load(given)
    assert list(given.glob("unfinished-*"))
    Predictor.load(run).save_pretrained(given)
    assert bytes_of(given) == bytes_of(tmp_path / "whole" / "given")

    (given / "manifest.json").unlink()
    (given / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has a metrics\.json that is not of ovd"):  # that of another detector
        Predictor(trained_detector("tiny")).save_pretrained(given)


def test_the_size_of_a_predictor_is_not_the_detectors(run, tmp_path):
    """A saved folder detects at the size that the detector was trained and measured at, whatever the predictor's size
    and the way it is loaded."""
    Predictor.load(run, size=64).save_pretrained(tmp_path / "given")
    expected = Predictor.load(run)(IMAGE, NAMES)
    for predictor in (Predictor.from_pretrained(tmp_path / "given"), Predictor.load(tmp_path / "given")):
        assert_same(predictor(IMAGE, NAMES), expected)


def test_folders_and_the_givers_device_are_nobody_elses_business(run, tmp_path):
    Predictor.load(run, device="cpu").save_pretrained(tmp_path / "given")
    assert "secret" not in (tmp_path / "given" / "state.json").read_text()
    config = load_detector(tmp_path / "given").config
    assert config.train.device == "auto"
    assert config.data.source.model_dump()["val_annotations"] == Path("val.json")
    assert config.train.seed == 5


def test_an_option_that_there_is_not_is_refused(run, tmp_path):
    Predictor.load(run).save_pretrained(tmp_path / "given")
    with pytest.raises(TypeError, match="unknown arguments: sise"):
        Predictor.from_pretrained(tmp_path / "given", sise=64)


def test_a_folder_takes_the_options_of_a_run(run, tmp_path):
    Predictor.load(run).save_pretrained(tmp_path / "given")
    assert Predictor.from_pretrained(tmp_path / "given", prefilter=0.5)._inference.options.prefilter == 0.5
    with pytest.raises(ValueError, match="has no expert"):
        Predictor.from_pretrained(tmp_path / "given", experts=[tmp_path])


def test_the_card_says_what_was_measured_and_no_more(run, tmp_path):
    Predictor.load(run).save_pretrained(tmp_path / "given")
    card = ModelCard.load(tmp_path / "given" / "README.md")
    text = card.content
    assert "\n# given\n" in text
    assert 'Predictor.from_pretrained("given")' in text
    assert card.data.model_name == "given"
    assert "| AP | APr |" in text
    assert "| 45.67 | - |" in text
    assert "LVIS v1 (ordinary AP)" in text
    assert "3 images have no box" in text
    assert "seed 5" in text
    assert "anchor, umbrella" in text
    assert "threshold 0.31" in text
    assert "may not be used for" in text
    assert "secret" not in text
    assert card.data.library_name == "ovd"
    (result,) = card.data.eval_results
    assert result.metric_value == 45.67
    assert result.dataset_type == "val.json"


def test_without_measurements_the_card_says_so(tmp_path):
    trained = replace(trained_detector("tiny"), calibration=None)
    Predictor(trained).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "This detector was not evaluated" in text
    assert "are not probabilities" in text
    assert not (tmp_path / "metrics.json").exists()


def test_metrics_of_a_later_checkpoint_are_not_those_of_an_earlier_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "step-000000", tmp_path / "run" / "step-000009")
    shutil.copytree(run / "step-000000", tmp_path / "run" / "step-1000000")
    (tmp_path / "run" / "step-000600.old.tmp").mkdir()
    records = [{"kind": "evaluation", "step": 0}, {"kind": "evaluation", "step": 9}, {"kind": "train", "step": 1000000}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step, has_metrics in (("step-000000", False), ("step-000009", True), ("step-1000000", False)):
        Predictor.load(tmp_path / "run" / step).save_pretrained(tmp_path / step)
        assert (tmp_path / step / "metrics.json").exists() == has_metrics
        card = (tmp_path / step / "README.md").read_text()
        assert f"| steps | {int(step.removeprefix('step-'))} of 7, of 16 images each |" in card


@pytest.mark.parametrize("folder", [".", "eval"])
def test_an_evaluation_of_these_very_weights_is_on_the_card(run, tmp_path, folder):
    """An evaluation of the saved weights is on the card even without a line in metrics.jsonl, as after `ovd eval RUN`
    and the quick start."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    evaluation = tmp_path / "run" / folder
    evaluation.mkdir(exist_ok=True)
    (evaluation / "metrics.json").write_text(json.dumps(METRICS))
    for name, weights in (("other", run / "step-000000" / "state.json"), ("own", find_checkpoint(run).weights)):
        write_note(evaluation, EvaluationNote(sha256_of(weights), is_of_own_set=True))
        Predictor.load(tmp_path / "run").save_pretrained(tmp_path / name)
        assert (tmp_path / name / "metrics.json").exists() == (name == "own")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", {"weights_sha256": "OWN", "is_of_own_set": False, "options": {"run": "run"}, "inputs": {}}),
        ("evaluation.json", {"weights_sha256": "other", "is_of_own_set": True, "options": {}, "inputs": {}}),
        ("evaluated.json", {}),  # a note of earlier versions
        ("measured_weights.json", {"sha256": "other"}),
    ],
)
def test_an_evaluation_of_something_else_in_the_run_folder_is_not_on_the_card(name, content, run, tmp_path):
    """An evaluation on other data or of another step's weights is not on the card, as after `ovd eval RUN --annotations
    OTHER --output RUN`."""
    shutil.copytree(run, tmp_path / "run")
    Predictor.load(tmp_path / "run").save_pretrained(tmp_path / "before")
    assert (tmp_path / "before" / "metrics.json").exists()
    text = json.dumps(content).replace("OWN", sha256_of(find_checkpoint(run).weights))
    (tmp_path / "run" / name).write_text(text)
    Predictor.load(tmp_path / "run").save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after" / "metrics.json").exists()


def test_a_prefilter_of_loading_is_not_saved(run, tmp_path):
    Predictor.load(run, prefilter=0.5).save_pretrained(tmp_path / "given")
    assert load_detector(tmp_path / "given").config.eval.prefilter is None


def test_a_clip_model_that_others_do_not_have_goes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_clip(TINY_CLIP, tmp_path / "my_clip")
    trained = trained_detector("my_clip")
    expected = Predictor(trained)(IMAGE, NAMES)
    Predictor(trained).save_pretrained(tmp_path / "given")
    shutil.rmtree(tmp_path / "my_clip")
    assert_same(Predictor.from_pretrained(tmp_path / "given")(IMAGE, NAMES), expected)


def test_the_card_names_a_local_clip_model_without_its_folders(tmp_path):
    copy_clip(TINY_CLIP, tmp_path / "my_clip")
    Predictor(trained_detector(str(tmp_path / "my_clip"))).save_pretrained(tmp_path / "given")
    text = (tmp_path / "given" / "README.md").read_text()
    assert "CLIP model\n`my_clip`." in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "mine.safetensors"])
def test_a_clip_folder_goes_along_whatever_its_weights_are_called(tmp_path, name):
    copy_clip(TINY_CLIP, tmp_path / "my_clip")
    weights = load_file(tmp_path / "my_clip" / WEIGHTS_FILE)
    (tmp_path / "my_clip" / WEIGHTS_FILE).unlink()
    if name.endswith(".bin"):
        torch.save(weights, tmp_path / "my_clip" / name)
    else:
        save_file(weights, tmp_path / "my_clip" / name)
    predictor = Predictor(trained_detector(str(tmp_path / "my_clip")))
    expected = predictor(IMAGE, NAMES)
    predictor.save_pretrained(tmp_path / "given")
    shutil.rmtree(tmp_path / "my_clip")
    assert_same(Predictor.from_pretrained(tmp_path / "given")(IMAGE, NAMES), expected)


def test_two_detectors_with_the_clip_model_of_one_folder_are_averaged(tmp_path):
    copy_clip(TINY_CLIP, tmp_path / "my_clip")
    Predictor(trained_detector(str(tmp_path / "my_clip"))).save_pretrained(tmp_path / "given")
    given = checkpoint.read(tmp_path / "given")
    folder = save_ensemble(given, given, weight=0.5, output=tmp_path / "mean")
    uncalibrated = Predictor(replace(load_detector(tmp_path / "given"), calibration=None))
    assert_same(Predictor.load(folder)(IMAGE, ["anchor"]), uncalibrated(IMAGE, ["anchor"]))


def test_a_named_model_with_local_weights_goes_along(untrained_clip, tmp_path):
    save_clip(untrained_clip, "tiny", tmp_path / "clip")
    again = load_clip(str(tmp_path / "clip"))
    assert text_tower_fingerprint(again) == text_tower_fingerprint(untrained_clip)
    for name, tensor in untrained_clip.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_experts_are_not_saved_with_a_detector(tmp_path):
    trained = replace(trained_detector("tiny"), experts=ExpertGroup((Path("mine"),), "base_stays", False))
    with pytest.raises(ValueError, match="saved without its experts"):
        Predictor.save_pretrained(_with(trained), tmp_path)


def _with(trained: TrainedDetector) -> Predictor:
    predictor = Predictor(replace(trained, experts=NO_EXPERTS))
    predictor._trained = trained
    return predictor


class LocalHub:
    """A stand-in for the hub, in which a repository is a folder."""

    root: Path

    def __init__(self, token: str | None = None):
        self.token = token

    def create_repo(self, repo_id: str, **_options: object) -> "LocalHub":
        self.repo_id = repo_id
        return self

    def upload_folder(self, *, repo_id: str, folder_path: Path, **_options: object) -> str:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"commit of {repo_id}"


def test_pushing_and_pulling(run, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalHub, "root", tmp_path, raising=False)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", LocalHub)
    monkeypatch.setattr("ovd.predictor.snapshot_download", lambda name, **_: str(tmp_path / name))
    monkeypatch.setattr(
        huggingface_hub.hub_mixin, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / repo_id / filename)
    )
    expected = Predictor.load(run)
    assert expected.push_to_hub("somebody/detector") == "commit of somebody/detector"
    assert 'from_pretrained("somebody/detector")' in (tmp_path / "somebody" / "detector" / "README.md").read_text()
    assert_same(Predictor.from_pretrained("somebody/detector")(IMAGE, NAMES), expected(IMAGE, NAMES))


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a detector that can be downloaded"):
        Predictor.from_pretrained("somebody/detector", local_files_only=True, cache_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a run folder nor a checkpoint"):
        Predictor.from_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").touch()  # the first file that a training writes
    with pytest.raises(ValueError, match="empty has no checkpoint: its training has not saved one yet"):
        Predictor.from_pretrained(tmp_path / "empty")


def test_a_damaged_file_is_found(run, tmp_path):
    Predictor.load(run).save_pretrained(tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors does not match its sha256"):
        Predictor.from_pretrained(tmp_path)


def test_load_detector_reads_the_classes(run, tmp_path):
    Predictor.load(run).save_pretrained(tmp_path)
    assert load_detector(tmp_path).classes == ("anchor", "umbrella")


def test_a_prefilter_replaces_that_of_the_run(run):
    trained = load_detector(run)
    assert build_inference(trained, prefilter=0.5).options == trained.config.eval.with_prefilter(0.5)
    assert build_inference(trained).options.prefilter is None
    with pytest.raises(ValueError, match="prefilter is 400; it must be a share of the points"):
        Predictor.load(run, prefilter=400)
