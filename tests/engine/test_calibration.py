"""Training that holds out images and names for calibration, and inference with the stored calibration."""

import json
import shutil
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from run_files import WEIGHTS, assert_same_step, assert_same_tensors, losses_of, tensors_of
from small_detector import build_detector
from small_run import small_config

import ovd.jobs.train
from ovd.build.data import hold_out, load_training_index
from ovd.build.prompts import Example, Prompt, PromptEncoder
from ovd.build.text import evaluation_text
from ovd.build.trained import build_inference, load_detector
from ovd.config.training import TrainConfig
from ovd.data.report import DataReport
from ovd.distributed import device_of_rank
from ovd.engine.signals import StopRequest
from ovd.engine.step_texts import TextSampler
from ovd.evaluation.calibrate import CalibrationError
from ovd.inference import ImageBatch, ImageQueries, Inference
from ovd.jobs.calibrate import calibrate_detector, mean_example, readable_part
from ovd.jobs.train import train_from_config
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.model.similarity import unit_embeddings
from ovd.structures import Detections
from ovd.text.encoder import encode_classes

# --- training

STEPS = 6
HELD_OUT = {"images": 4, "names": 0.3}


def calibrating(output: Path, world: Path) -> TrainConfig:
    return small_config(output, world, train={"calibration": HELD_OUT, "name_dropout": 0.2})


def extra_of(run: Path) -> dict[str, Any]:
    return json.loads((end_of(run) / "state.json").read_text())["extra"]


def end_of(run: Path) -> Path:
    return run / f"step-{STEPS:06d}"


@dataclass
class Watched:
    """A run, and the images and classes that its steps were given."""

    run: Path
    image_ids: set[int] = field(default_factory=set)
    class_ids: set[int] = field(default_factory=set)
    num_batches: int = 0


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, miniature_world) -> Watched:
    watched = Watched(tmp_path_factory.mktemp("calibrated") / "run")
    sample = TextSampler.sample

    def watch(self, batch, generator):
        texts = sample(self, batch, generator)
        watched.image_ids |= set(batch.image_ids)
        watched.class_ids |= set(texts.class_ids.tolist())
        watched.num_batches += 1
        return texts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextSampler, "sample", watch)
        train_from_config(calibrating(watched.run, miniature_world), evaluate=False)
    return watched


def test_no_step_sees_what_is_held_out(calibrated, miniature_world):
    config = calibrating(calibrated.run, miniature_world)
    trained, held_out = hold_out(config, load_training_index(config, DataReport()))
    assert held_out is not None
    assert calibrated.num_batches == STEPS + 1  # one more, since the bias is solved on the first batch
    assert len(calibrated.image_ids) == 2 * STEPS
    assert calibrated.image_ids <= set(trained.image_ids.tolist())
    assert not calibrated.image_ids & set(held_out.index.image_ids.tolist())
    assert not held_out.names[list(calibrated.class_ids)].any()
    assert len(calibrated.class_ids) > 20


def test_the_last_checkpoint_has_the_calibration_and_no_earlier_one(calibrated, miniature_world):
    config = calibrating(calibrated.run, miniature_world)
    stored, files = extra_of(calibrated.run)["calibration"], tensors_of(end_of(calibrated.run))
    assert files["attached"].keys() == {"mean_example", "trained_text"}
    _, held_out = hold_out(config, load_training_index(config, DataReport()))
    assert held_out is not None
    assert len(files["attached"]["trained_text"]) == (~held_out.names).sum()
    assert 0 < stored["threshold"] < 1
    earlier = calibrated.run / "step-000004"
    assert not (earlier / "attached.safetensors").exists()
    assert "calibration" not in json.loads((earlier / "state.json").read_text())["extra"]


def test_a_loaded_detector_is_calibrated(calibrated, miniature_world):
    trained = load_detector(calibrated.run)
    assert trained.calibration is not None
    assert trained.calibration.to_json() == extra_of(calibrated.run)["calibration"]
    _, held_out = hold_out(trained.config, load_training_index(trained.config, DataReport()))
    assert held_out is not None
    text = evaluation_text(trained.config, trained.clip, held_out.index.names, held_out.index.synonyms)
    torch.testing.assert_close(trained.calibration.trained_text, text[torch.from_numpy(~held_out.names)])
    nearness = trained.calibration.nearness(text)
    torch.testing.assert_close(nearness[torch.from_numpy(~held_out.names)], torch.ones((~held_out.names).sum()))
    assert (nearness[torch.from_numpy(held_out.names)] < 0.999).all()
    inference = build_inference(trained)
    assert inference.threshold == trained.calibration.threshold
    assert inference.calibration is trained.calibration


def test_the_mean_example_is_that_of_the_held_out_boxes(calibrated):
    trained = load_detector(calibrated.run)
    _, held_out = hold_out(trained.config, load_training_index(trained.config, DataReport()))
    assert held_out is not None
    records = [held_out.index.record(row) for row in range(len(held_out.index))]
    examples = [Example(record.path, tuple(box)) for record in records for box in record.labels.boxes.tolist()]
    bare = replace(trained, mean_example=None)
    rows = PromptEncoder(bare).rows(tuple(Prompt("x", images=(example,)) for example in examples))
    assert trained.mean_example is not None
    torch.testing.assert_close(trained.mean_example, rows.mean(dim=0), atol=1e-3, rtol=0)
    assert trained.calibration is not None
    moved = PromptEncoder(trained).rows((Prompt("x", images=(examples[0],)),))[0]
    expected = rows[0] - trained.mean_example + trained.calibration.trained_text.mean(dim=0)
    torch.testing.assert_close(moved, expected / expected.norm(), atol=1e-5, rtol=0)


def test_what_is_stored_is_fitted_to_the_averaged_weights(calibrated):
    trained = load_detector(calibrated.run)
    assert trained.calibration is not None
    _, held_out = hold_out(trained.config, load_training_index(trained.config, DataReport()))
    assert held_out is not None
    again = calibrate_detector(replace(trained, calibration=None), held_out)
    assert again.name_bias == trained.calibration.name_bias
    assert again.threshold == pytest.approx(trained.calibration.threshold, rel=1e-3)
    torch.testing.assert_close(again.score_map.weights, trained.calibration.score_map.weights, rtol=1e-3, atol=1e-3)


def test_resumed_it_ends_with_the_same_bits_and_the_same_calibration(calibrated, tmp_path, miniature_world):
    run = tmp_path / "run"
    shutil.copytree(calibrated.run, run)
    shutil.rmtree(run / "step-000006")
    train_from_config(calibrating(run, miniature_world), resume=True, evaluate=False)
    assert_same_step(end_of(calibrated.run), end_of(run), files=(*WEIGHTS, "attached"))
    assert extra_of(run) == extra_of(calibrated.run)


def test_a_finished_run_is_evaluated_with_its_calibration(calibrated, tmp_path, miniature_world, monkeypatch):
    run, used = tmp_path / "run", []
    shutil.copytree(calibrated.run, run)
    detect_all = ovd.jobs.train.detect_all

    def watch(trained, *arguments, **options):
        used.append(trained.calibration)
        return detect_all(trained, *arguments, **options)

    monkeypatch.setattr(ovd.jobs.train, "detect_all", watch)
    assert "APr" in train_from_config(calibrating(run, miniature_world), resume=True)
    assert [calibration.to_json() for calibration in used] == [extra_of(calibrated.run)["calibration"]]


def test_held_out_images_that_cannot_be_read_are_named_and_left_out(calibrated, tmp_path, capsys):
    trained = load_detector(calibrated.run)
    _, held_out = hold_out(trained.config, load_training_index(trained.config, DataReport()))
    assert held_out is not None
    assert readable_part(held_out, StopRequest()) is held_out
    assert held_out.index.images_root is not None
    shutil.copytree(held_out.index.images_root, tmp_path / "images")
    moved = replace(held_out, index=replace(held_out.index, images_root=tmp_path / "images"))
    paths = [moved.index.record(row).path for row in range(len(moved.index))]
    paths[1].unlink()
    part = readable_part(moved, StopRequest())
    assert (
        f"warning[F8]: {paths[1]}: file is missing; the image is left out of the calibration" in capsys.readouterr().err
    )
    assert part.index.image_ids.tolist() == np.delete(moved.index.image_ids, 1).tolist()
    assert mean_example(trained.config, part, StopRequest()).isfinite().all()
    for path in paths[:1] + paths[2:]:
        path.write_bytes(b"")
    with pytest.raises(CalibrationError, match="none of 4 held-out images can be read"):
        readable_part(moved, StopRequest())


def test_a_calibration_that_fails_does_not_cost_the_training(
    calibrated, tmp_path, miniature_world, monkeypatch, capsys
):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("ovd.jobs.train.calibrate_detector", fail)
    run = tmp_path / "run"
    shutil.copytree(calibrated.run, run)
    shutil.rmtree(run / f"step-{STEPS:06d}")
    train_from_config(calibrating(run, miniature_world), resume=True, evaluate=False)
    printed = capsys.readouterr()
    assert "warning: the calibration failed (out of memory); the detector is not calibrated" in printed.err
    assert "Traceback" in printed.err
    assert extra_of(run).get("calibration") is None
    assert load_detector(run).calibration is None


PARTS_OF_A_CALIBRATION = (
    "ovd.jobs.calibrate:read_image",
    "ovd.evaluation.calibrate:nearest_matched_points",
    "ovd.evaluation.calibrate:judge_detections",
)
"""Functions that a calibration calls for each image, the first one at its beginning and at its end."""


def signal_in_a_calibration(monkeypatch, function: str, call: int, *, kills_workers: bool) -> dict[str, int]:
    """Send SIGTERM in a call of a function of the calibration, and count the calls of its functions by name."""
    counts: dict[str, int] = {}

    def watch(name: str) -> None:
        real = resolve_name(name)
        counts[name] = 0

        def watched(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            if name == function and counts[name] == call:
                signal.raise_signal(signal.SIGTERM)
                if kills_workers:
                    raise RuntimeError("a worker is killed")
            return real(*arguments, **options)

        monkeypatch.setattr(name.replace(":", "."), watched)

    for name in PARTS_OF_A_CALIBRATION:
        watch(name)
    return counts


@pytest.mark.parametrize(
    ("part", "call", "kills_workers", "num_calls"),
    [
        pytest.param(0, 2, False, (2, 0, 0), marks=pytest.mark.slow),
        (1, 1, True, (4, 1, 0)),
        pytest.param(2, 1, False, (4, 4, 1), marks=pytest.mark.slow),
        (0, 6, False, (6, 4, 4)),
    ],
)
def test_a_signal_in_a_calibration_stops_it_and_a_resume_repeats_it(
    part, call, kills_workers, num_calls, calibrated, tmp_path, miniature_world, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(calibrated.run, run)
    shutil.rmtree(end_of(run))
    config = calibrating(run, miniature_world)
    with monkeypatch.context() as patch:
        counts = signal_in_a_calibration(patch, PARTS_OF_A_CALIBRATION[part], call, kills_workers=kills_workers)
        with pytest.raises(SystemExit) as stopped:
            train_from_config(config, resume=True, evaluate=False)
    assert stopped.value.code == 143
    assert tuple(counts.values()) == num_calls
    printed = capsys.readouterr()
    assert f"stopped by a signal after step {STEPS}; its checkpoint is saved, and the run can be resumed" in printed.out
    assert "not calibrated" not in printed.err
    assert load_detector(run).calibration is None
    whole, stopped_at = tensors_of(end_of(calibrated.run)), tensors_of(end_of(run))
    assert stopped_at.keys() == set(WEIGHTS)
    for name in WEIGHTS:
        assert_same_tensors(whole[name], stopped_at[name])
    report = (run / "data_report.json").read_bytes()

    train_from_config(config, resume=True, evaluate=False)
    assert_same_step(end_of(calibrated.run), end_of(run), files=(*WEIGHTS, "attached"))
    assert extra_of(run) == extra_of(calibrated.run)
    assert len(losses_of(run)) == STEPS
    assert report in [path.read_bytes() for path in run.glob("data_report.*.json")]
    assert sorted(path.name for path in run.glob("step-*")) == ["step-000004", "step-000006"]


def test_a_run_that_holds_nothing_out_stores_no_calibration(plain_run):
    assert extra_of(plain_run).get("calibration") is None
    assert tensors_of(end_of(plain_run)).keys() == set(WEIGHTS)
    trained = load_detector(plain_run)
    assert trained.calibration is None
    assert build_inference(trained).threshold is None


# --- inference

NAMES = ["anchor", "gear", "umbrella", "cat face"]
NAME_BIAS = 0.08
UNCHANGED = ScoreMap(1.0, 1.0, 0.0, 0.0)
PUSHING = ScoreMap(1.4, 0.3, 0.2, -3.0)
"""A score map that lowers the scores of names far from trained ones."""


@pytest.fixture(scope="module")
def texts(tiny_clip) -> torch.Tensor:
    """Unit embeddings of `NAMES`, and a last one halfway between a trained name and another."""
    rows = encode_classes(tiny_clip, NAMES, ("{}",))
    return torch.cat([rows, unit_embeddings(rows[:1] + rows[2:3])])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)


def calibration_of(texts: torch.Tensor, name_bias: float, score_map: ScoreMap, **options: Any) -> ScoreCalibration:
    """Make the calibration of a detector that was trained on the first two names."""
    return ScoreCalibration(name_bias, score_map, 0.42, DetectionOptions(**options), texts[:2])


def detect(
    clip, texts: torch.Tensor, image: np.ndarray, calibration: ScoreCalibration | None, *, lower: float = 0.0,
    **options: Any,
) -> Detections:  # fmt: skip
    """Detect with a fresh detector whose logits are all lowered as if its cosines were `lower` less."""
    detector = build_detector(clip, "pyramid", "head").eval()
    detector.set_bias((detector.bias - detector.scale * lower).detach().item())
    inference = Inference(
        detector, size=96, options=DetectionOptions(**options), low_precision=False, calibration=calibration
    )
    return inference.image(QueryTexts(texts), image)


def of_class(found: Detections, row: int) -> Detections:
    own = found.classes == row
    return Detections(found.boxes[own], found.scores[own], found.classes[own])


def test_names_are_lowered_by_the_bias_times_their_nearness(tiny_clip, texts, image):
    """Each name scores as if a detector with a lower bias detected it alone."""
    calibration = calibration_of(texts, NAME_BIAS, UNCHANGED)
    nearness = calibration.nearness(texts)
    assert 0.5 < nearness[4] < 0.95
    found = detect(tiny_clip, texts, image, calibration)
    plain = detect(tiny_clip, texts, image, None)
    assert len(found.scores) < 1000  # the limit of detections dropped none
    for row in range(len(texts)):
        lower = NAME_BIAS * nearness[row].item()
        expected = detect(tiny_clip, texts[row : row + 1], image, None, lower=lower)
        own = of_class(found, row)
        torch.testing.assert_close(own.scores, expected.scores, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(own.boxes, expected.boxes)
        if row in (0, 1, 4):
            assert own.scores.max() < of_class(plain, row).scores.max()


def test_texts_may_lie_on_the_detectors_device(tiny_clip, texts, image):
    device = device_of_rank("auto")
    calibration = calibration_of(texts, NAME_BIAS, PUSHING)
    detector = build_detector(tiny_clip, "pyramid", "head").eval().to(device)
    inference = Inference(detector, size=96, options=DetectionOptions(), low_precision=False, calibration=calibration)
    found, expected = inference.image(QueryTexts(texts.to(device)), image), inference.image(QueryTexts(texts), image)
    assert torch.equal(found.scores, expected.scores)


def test_probabilities_are_the_same_inside_a_callers_autocast(tiny_clip, texts, image):
    calibration = calibration_of(texts, NAME_BIAS, PUSHING)
    detector = build_detector(tiny_clip, "pyramid", "head").eval()
    size, groups = torch.tensor([[96, 96]]), [ImageQueries(slice(None), QueryTexts(texts))]
    batch = ImageBatch(torch.from_numpy(image[:48, :48].copy()).permute(2, 0, 1)[None].repeat(1, 1, 2, 2), size, size)
    found: list[Detections] = []
    for enabled in (False, True):
        inference = Inference(
            detector, size=96, options=DetectionOptions(), low_precision=False, calibration=calibration
        )
        predictions = inference.predict(batch.images, batch.sizes)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found += inference.detections(predictions, batch, groups)
    assert len(found[0].scores) > 100
    assert torch.equal(found[0].scores, found[1].scores)


def test_without_a_bias_the_classifier_is_the_detectors(tiny_clip, texts):
    detector = build_detector(tiny_clip, "pyramid", "head").eval()
    for calibration in (None, calibration_of(texts, 0.0, PUSHING)):
        inference = Inference(
            detector, size=96, options=DetectionOptions(), low_precision=False, calibration=calibration
        )
        assert inference.classifier(texts).name_penalty is None


def test_a_map_changes_scores_and_neither_boxes_nor_the_order_within_a_class(tiny_clip, texts, image):
    calibration = calibration_of(texts, 0.0, PUSHING)
    found, plain = (detect(tiny_clip, texts, image, used) for used in (calibration, None))
    assert len(found.scores) == len(plain.scores) > 100
    nearness = calibration.nearness(texts)
    for row in range(len(texts)):
        own, before = of_class(found, row), of_class(plain, row)
        assert torch.equal(own.boxes, before.boxes)
        assert (own.scores.diff() <= 0).all()
        odds = before.scores**1.4 / (1 - before.scores) ** 0.3 * torch.exp(0.2 - 3 * (1 - nearness[row]))
        torch.testing.assert_close(own.scores, odds / (1 + odds), atol=1e-6, rtol=1e-3)


def test_mapped_detections_are_best_first_over_all_classes_and_above_the_threshold(tiny_clip, texts, image):
    calibration = calibration_of(texts, 0.0, PUSHING)
    found = detect(tiny_clip, texts, image, calibration)
    assert (found.scores.diff() <= 0).all()
    score = found.scores[20].item()
    above = detect(tiny_clip, texts, image, calibration, score_threshold=score)
    assert torch.equal(above.scores, found.scores[found.scores > score])


@pytest.mark.parametrize("options", [{"nms_iou": 0.5}, {"competition": 20.0}], ids=str)
def test_with_other_options_the_bias_is_corrected_but_no_map_applied(tiny_clip, texts, image, options):
    detector = build_detector(tiny_clip, "pyramid", "head").eval()
    calibration = calibration_of(texts, NAME_BIAS, PUSHING)

    def inference_with(**given: Any) -> Inference:
        return Inference(
            detector, size=96, options=DetectionOptions(**given), low_precision=False, calibration=calibration
        )

    assert inference_with(**options).threshold is None
    assert inference_with(score_threshold=0.01).threshold == 0.42
    found = inference_with(**options).image(QueryTexts(texts), image)
    unmapped = detect(tiny_clip, texts, image, calibration_of(texts, NAME_BIAS, UNCHANGED, **options), **options)
    torch.testing.assert_close(found.scores, unmapped.scores, atol=2e-6, rtol=1e-4)
    assert torch.equal(found.boxes, unmapped.boxes)
    plain = detect(tiny_clip, texts, image, None, **options)
    assert plain.scores.max() > found.scores.max()
