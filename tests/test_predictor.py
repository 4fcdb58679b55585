"""Detection from Python: the same boxes as in evaluation, and a list of names is encoded once."""

import copy
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_export import unchecked
from small_trained import small_trained

import ovd.build.prompts
from ovd.build.detector import resolve_device
from ovd.build.prompts import Example, Prompt
from ovd.build.text import evaluation_text, queries_of_names, score_ensemble, text_of_names
from ovd.build.trained import TrainedDetector, build_inference
from ovd.data.annotations import load_annotations
from ovd.data.images.image_file import ImageError
from ovd.data.images.read import read_image
from ovd.data.loading.loader import LoaderOptions
from ovd.data.report import DataReport
from ovd.inference import Inference
from ovd.model.query_texts import QueryTexts
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.precision import Compute
from ovd.predictor import Predictor
from ovd.threshold import UNCALIBRATED_THRESHOLD

NAMES = ["anchor", "umbrella", "cat face"]


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    settings = {"ensemble": {"base": 0.1, "novel": 0.9}, "max_detections": 20}
    return small_trained(tiny_clip, "anchor", detector={"freeze_backbone": True}, data={"size": 96}, eval=settings)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)


def test_it_finds_what_evaluation_finds_also_with_the_ensemble_of_the_run(trained, image):
    device = resolve_device(trained.config)
    detector = Compute(device, False).freeze(trained.detector)  # as evaluation does it
    inference = Inference(detector, size=96, options=trained.config.eval, low_precision=False)
    queries = queries_of_names(trained, NAMES)
    assert torch.equal(queries.text, evaluation_text(trained.config, trained.clip, NAMES))
    assert queries.ensemble is not None
    expected = inference.image(queries, image)
    found = Predictor(trained)(image, NAMES)
    for name in ("boxes", "scores", "classes"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    alone = inference.image(QueryTexts(queries.text), image)
    assert not torch.equal(found.scores, alone.scores)
    assert not torch.equal(found.boxes, Predictor(trained, size=64)(image, NAMES).boxes)


def test_an_evaluation_of_images_of_many_shapes_finds_what_is_found_in_each_alone(trained, tmp_path):
    """An evaluation of images of many shapes finds what each image alone gives: norms average over the padding, so
    images of unlike shapes must not share a batch."""
    sizes = [(60, 90), (90, 50), (64, 90), (96, 96), (20, 96), (91, 50)]
    rng, paths = np.random.default_rng(0), []
    for number, (height, width) in enumerate(sizes):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    images = [
        {"id": number, "file_name": path.name, "height": height, "width": width}
        for number, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True))
    ]
    categories = [{"id": 1 + row, "name": name} for row, name in enumerate(NAMES)]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    index = load_annotations(tmp_path / "boxes.json", tmp_path, format="coco", report=DataReport())
    inference = build_inference(trained)
    queries = QueryTexts(evaluation_text(trained.config, trained.clip, NAMES))
    found = dict(inference.dataset(queries, index, LoaderOptions(batch_size=4, workers=0)))
    assert sorted(found) == list(range(len(sizes)))
    for number, path in enumerate(paths):
        alone = inference.image(queries, read_image(path))
        torch.testing.assert_close(found[number].scores, alone.scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[number].boxes, alone.boxes, atol=1e-2, rtol=0)


def test_scores_with_an_ensemble_are_no_probabilities(trained, image):
    text = evaluation_text(trained.config, trained.clip, ["anchor"])
    calibration = ScoreCalibration(0.1, ScoreMap(0.5, 1.0, 0.0, 0.0), 0.31, trained.config.eval, text)
    calibrated = replace(trained, calibration=calibration)
    assert calibrated.threshold is None
    predictor = Predictor(calibrated)
    assert not predictor.is_calibrated
    assert predictor.threshold == UNCALIBRATED_THRESHOLD
    assert torch.equal(predictor(image, NAMES).scores, Predictor(trained)(image, NAMES).scores)


def test_its_threshold_is_that_of_the_calibration_for_the_runs_own_post_processing(trained):
    alone = trained.config.model_copy(update={"eval": trained.config.eval.model_copy(update={"ensemble": None})})
    trained = replace(trained, config=alone)
    assert not Predictor(trained).is_calibrated
    assert Predictor(trained).threshold == UNCALIBRATED_THRESHOLD
    text = evaluation_text(trained.config, trained.clip, ["anchor"])
    calibration = ScoreCalibration(0.0, ScoreMap(1.0, 1.0, 0.0, 0.0), 0.31, trained.config.eval, text)
    calibrated = Predictor(replace(trained, calibration=calibration))
    assert calibrated.is_calibrated
    assert calibrated.threshold == 0.31
    other = replace(calibration, options=trained.config.eval.model_copy(update={"competition": 20.0}))
    assert not Predictor(replace(trained, calibration=other)).is_calibrated


def test_files_are_read_and_names_encoded_once(trained, image, tmp_path, monkeypatch):
    calls = []

    def encode(trained, names):
        calls.append(names)
        return text_of_names(trained, names)

    monkeypatch.setattr(ovd.build.prompts, "text_of_names", encode)
    Image.fromarray(image).save(tmp_path / "image.png")
    predictor = Predictor(trained)
    of_file, of_pixels = predictor(tmp_path / "image.png", NAMES), predictor(image, tuple(NAMES))
    assert torch.equal(of_file.boxes, of_pixels.boxes)
    predictor(str(tmp_path / "image.png"), NAMES[:1])
    assert calls == [tuple(NAMES), ("anchor",)]
    with pytest.raises(ImageError, match="file is missing"):
        predictor(tmp_path / "none.png", NAMES)
    with pytest.raises(ValueError, match="at least one"):
        predictor(image, [])


def test_one_name_may_stand_alone_and_images_in_memory_are_all_alike(trained, image):
    predictor = Predictor(trained)
    expected = predictor(image, ["anchor"])
    for given in (Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1), image / 255):
        found = predictor(given, "anchor")
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)
    with pytest.raises(ValueError, match="the class name 'cat face' is given twice"):
        predictor(image, ["cat face", "anchor", "Cat_face"])
    for names in (["anchor", " "], ""):
        with pytest.raises(ValueError, match=r"these positions are blank: \[\d\] \(counted from 0\)"):
            predictor(image, names)


def test_names_of_other_spellings_are_trained_on_all_the_same(trained):
    ensemble = score_ensemble(trained, ["Anchor", "anchor", "an_anchor"])
    assert ensemble is not None
    assert ensemble.weights.tolist() == pytest.approx([0.1, 0.1, 0.9])
    other_spelling = score_ensemble(replace(trained, classes=("Paper_Boat",)), ["paper boat", "anchor"])
    assert other_spelling is not None
    assert other_spelling.weights.tolist() == pytest.approx([0.1, 0.9])


def test_learned_offsets_move_the_rows_of_their_names_in_any_spelling(tiny_clip):
    learned = small_trained(tiny_clip, "anchor", "Paper_Boat")
    names = ["paper boat", "gear", "Anchor"]
    before = text_of_names(learned, names)
    offsets = torch.randn(2, tiny_clip.dim, generator=torch.Generator().manual_seed(0))
    learned.detector.name_offsets = torch.nn.Parameter(offsets)
    moved = before + torch.stack([offsets[1], torch.zeros(tiny_clip.dim), offsets[0]])
    torch.testing.assert_close(text_of_names(learned, names), moved / moved.norm(dim=1, keepdim=True))


def test_a_prompt_of_one_text_is_that_name(trained, image):
    predictor = Predictor(trained)
    with pytest.raises(ValueError, match="the class name 'anchor' is given twice"):
        predictor(image, [Prompt("mine", ("anchor",)), "Anchor"])
    assert len(predictor(image, [Prompt("mine", ("anchor", "ship's anchor")), "anchor"]).boxes) > 0


def test_what_a_prompt_is_called_does_not_change_its_scores(trained, image):
    """The label of a prompt does not change its scores, even with the ensemble, which has other weights for trained
    names such as "anchor"."""
    predictor = Predictor(trained)
    for text, label in (("anchor", "thing"), ("umbrella", "anchor")):
        assert torch.equal(predictor(image, Prompt(label, (text,))).scores, predictor(image, text).scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("cat", ("_",)), "blank"), (("&nbsp;", ("cat",)), "blank")],
)
def test_a_prompt_of_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Prompt(*arguments)


def test_a_box_of_three_numbers_is_refused(trained, image):
    with unchecked(), pytest.raises(ValueError, match="a box must have four numbers, x0, y0, x1, y1, not 3"):
        Predictor(trained)(image, Prompt("cat", images=(Example(image, (1, 2, 3)),)))  # type: ignore[arg-type]


def test_text_rows_of_ones_own_detect_as_names_do(tiny_clip, trained, image):
    config = trained.config.model_copy(update={"eval": trained.config.eval.model_copy(update={"ensemble": None})})
    predictor = Predictor(replace(trained, config=config))
    rows = evaluation_text(config, trained.clip, NAMES)
    expected = predictor(image, NAMES)
    for given in (rows, rows.numpy(), rows.double().numpy()):
        found = predictor.detect(image, given)
        assert torch.equal(found.classes, expected.classes)
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.boxes, expected.boxes)
    with pytest.raises(ValueError, match="row 0 has the norm 2"):
        predictor.detect(image, 2 * rows)


def test_no_rows_find_nothing(trained, image):
    inference = Inference(trained.detector, size=96, options=trained.config.eval, low_precision=False)
    assert len(inference.image(QueryTexts(torch.zeros(0, trained.clip.dim)), image).boxes) == 0


@pytest.mark.parametrize("size", [0, -5, 1, 2.5, True, "192"])
def test_a_size_that_is_none_is_refused(trained, size):
    with (
        unchecked(),
        pytest.raises(ValueError, match="it must be the longest side in pixels, a whole number of at least 32"),
    ):
        Predictor(trained, size=size)


def test_the_size_of_a_calibration_is_told_of_sizes_that_are_taken(trained, monkeypatch, capsys):
    monkeypatch.setattr(TrainedDetector, "threshold", 0.4)
    with pytest.raises(ValueError, match=r"size is 7; .* whole number of at least 32"):
        Predictor(trained, size=7)
    assert capsys.readouterr().err == ""
    Predictor(trained, size=64)
    assert "at 64 px they are less accurate as probabilities" in capsys.readouterr().err


def test_options_of_experts_need_experts_and_known_words():
    with pytest.raises(ValueError, match="same_place and nearest need experts"):
        Predictor.load("none", nearest=True)
    with unchecked(), pytest.raises(ValueError, match="same_place must be one of base_stays, surer, both, not 'Surer'"):
        Predictor.load("none", experts="mine", same_place="Surer")  # type: ignore[arg-type]


def test_a_copy_in_another_process_detects_alike(trained, image):
    section = trained.config.train.model_copy(update={"device": "cpu"})
    config = trained.config.model_copy(update={"train": section})
    predictor = Predictor(replace(trained, detector=copy.deepcopy(trained.detector), config=config))
    expected = predictor(image, NAMES)
    copied = pickle.loads(pickle.dumps(predictor))
    assert torch.equal(copied(image, NAMES).scores, expected.scores)


def test_a_callers_context_does_not_spoil_the_kept_rows(trained, image):
    expected = Predictor(trained)(image, NAMES)
    predictor = Predictor(trained)
    with torch.autocast("cpu", torch.bfloat16):
        predictor(image, NAMES)
    assert torch.equal(predictor(image, NAMES).scores, expected.scores)
    torch.set_default_dtype(torch.float64)
    try:
        predictor(image, ["kite"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(predictor(image, ["kite"]).scores, Predictor(trained)(image, ["kite"]).scores)


def test_any_path_is_one(trained, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "image.png")
    (entry,) = os.scandir(tmp_path)
    predictor = Predictor(trained)
    assert torch.equal(predictor(entry, NAMES).scores, predictor(image, NAMES).scores)


def test_an_ensembles_names_are_looked_up_once(trained):
    """An ensemble looks up trained names once, so that it is as fast for any number of names."""
    many = replace(trained, classes=tuple(f"class {number}" for number in range(2000)))
    ensemble = score_ensemble(many, [f"class {number}" for number in range(500)])
    assert ensemble is not None
    assert set(ensemble.weights.tolist()) == {ensemble.weights[0].item()}
