"""The pseudo-labeling job: the queries and options that it passes to its teacher."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import encode
from small_trained import small_trained

from ovd.build.trained import TrainedDetector
from ovd.choices import QuerySource, Templates
from ovd.commands import label_pairs
from ovd.config.labeling import LabelOptions
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataError
from ovd.jobs.label_pairs import LabelRequest, device_of_worker, pseudo_label_run
from ovd.jobs.queries import read_class_names
from ovd.jobs.ray_label import RayRequest
from ovd.model.detection_options import DetectionOptions
from ovd.model.score_calibration import ScoreCalibration, ScoreMap
from ovd.selftrain.labels import TeacherBoxes, read_labels
from ovd.selftrain.ledger import LabelCounts, total_counts
from ovd.text.prompts import TEMPLATES


class FakeTeacher:
    """A teacher that finds nothing, and records its options and queries."""

    made: "list[FakeTeacher]"

    def __init__(self, name_or_folder: str, **options):
        self.name = f"fake {name_or_folder} {options['templates']}"
        self.templates = options["templates"]
        self.asked: list[tuple[str, ...]] = []
        self.made.append(self)

    def detect(self, images: list[np.ndarray], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        self.asked += queries
        nothing = TeacherBoxes(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
        return [nothing] * len(images)


@pytest.fixture
def made(monkeypatch) -> list[FakeTeacher]:
    monkeypatch.setattr(FakeTeacher, "made", [], raising=False)
    monkeypatch.setattr("ovd.jobs.label_pairs.HuggingFaceTeacher", FakeTeacher)
    return FakeTeacher.made


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    """A fresh detector whose config has the seven short templates."""
    return small_trained(tiny_clip, output="runs/fresh", bank={"templates": "short"}, train={"device": "cpu"})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    image = encode(np.zeros((40, 60, 3), np.uint8), "JPEG")
    write_pair_shards(folder, [Pair("00000", image, "an anchor", {})], pairs_per_shard=1)
    return folder


@pytest.mark.parametrize(
    ("queries", "templates", "asked", "read_in", "stored_in"),
    [
        ("nouns", None, "anchor", None, "short"),
        ("nouns", "none", "anchor", "none", "none"),
        ("nouns", "short", "anchor", "short", "short"),
        ("classes", "full", "umbrella", "full", "full"),
        ("caption", None, "an anchor", None, None),
        ("caption", "short", "an anchor", None, None),
    ],
)
def test_templates_that_are_given_reach_the_teacher(
    queries: QuerySource,
    templates: Templates | None,
    asked: str,
    read_in: Templates | None,
    stored_in: Templates | None,
    tmp_path,
    trained,
    pairs,
    made,
):
    options = LabelOptions(queries=queries, classes=("umbrella",) if queries == "classes" else ())
    pseudo_label_run(trained, LabelRequest(pairs, tmp_path, options, templates=templates, teacher_hf="owl"))
    (teacher,) = made
    assert teacher.asked == [(asked,)]
    assert teacher.templates == (None if read_in is None else TEMPLATES[read_in])
    settings = json.loads((tmp_path / "00000.json").read_text())["settings"]
    assert settings["teacher"] == teacher.name
    assert settings["templates"] == (None if stored_in is None else list(TEMPLATES[stored_in]))


@pytest.mark.parametrize(("queries", "most"), [("caption", 31), ("nouns", 600)])
def test_a_teacher_gives_all_boxes_where_the_best_of_each_name_is_kept(queries, most, tmp_path, trained, pairs):
    """For nouns the teacher returns all boxes; for captions, one more than are kept is enough, since a caption is one
    name, whose best box is among the best of the image."""
    config = trained.config.model_copy(update={"eval": trained.config.eval.model_copy(update={"candidates": 50})})
    options = LabelOptions(queries=queries, max_boxes=30)
    pseudo_label_run(replace(trained, config=config), LabelRequest(pairs, tmp_path, options))
    name = json.loads((tmp_path / "00000.json").read_text())["settings"]["teacher"]
    assert f"max_detections={most}, candidates=600" in name


def test_the_folder_that_was_asked_for_is_printed_and_the_ledger_is_the_same_wherever_it_is(
    tmp_path, trained, pairs, capsys
):
    options = LabelOptions(queries="caption")
    ledgers = []
    for folder in (None, tmp_path / "moved"):
        output = tmp_path / f"labels of {folder is not None}"
        pseudo_label_run(replace(trained, folder=folder), LabelRequest(pairs, output, options))
        assert f"{output}: {folder or 'runs/fresh'} sha256 " in capsys.readouterr().out
        ledgers.append((output / "00000.json").read_bytes())
    assert ledgers[0] == ledgers[1]
    assert json.loads(ledgers[0])["settings"]["teacher"].startswith("runs/fresh sha256 ")


def with_competition(trained: TrainedDetector, competition: float) -> TrainedDetector:
    config = trained.config
    of_run = config.eval.model_copy(update={"competition": competition})
    return replace(trained, config=config.model_copy(update={"eval": of_run}))


def test_a_teacher_whose_names_compete_scores_a_name_alike_among_few_and_many(tmp_path, trained, pairs, capsys):
    captions = ("an anchor", "an anchor, a gear, a bell and an umbrella")
    image, folder = PairShards(pairs)[0].image, tmp_path / "pairs"
    write_pair_shards(folder, [Pair(f"{k}", image, text, {}) for k, text in enumerate(captions)], pairs_per_shard=2)
    options = LabelOptions(queries="nouns", score_threshold=0.0)
    competing = with_competition(trained, 20.0)
    pseudo_label_run(competing, LabelRequest(folder, tmp_path / "out", options))
    labels = read_labels(tmp_path / "out" / "00000.safetensors")
    of_anchor = [labels.scores[row][labels.box_texts[row] == labels.texts.index("anchor")].max() for row in range(2)]
    assert of_anchor[0] == pytest.approx(of_anchor[1], abs=1e-5)
    assert "runs/fresh: eval.competition is off" in capsys.readouterr().out
    pseudo_label_run(trained, LabelRequest(folder, tmp_path / "plain", options))
    assert (tmp_path / "plain" / "00000.json").read_bytes() == (tmp_path / "out" / "00000.json").read_bytes()
    assert "compete" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("competition", "fitted_with", "said"),
    [
        (0.0, 0.0, "scores are probabilities"),
        (20.0, 20.0, "scores are not calibrated"),
        (20.0, 0.0, "scores are probabilities"),
        (0.0, None, "scores are not calibrated"),
    ],
)
def test_a_calibration_that_was_fitted_where_names_compete_is_left_out(
    competition: float, fitted_with: float | None, said: str, tmp_path, trained, pairs, capsys
):
    calibration = None
    if fitted_with is not None:
        options = DetectionOptions(competition=fitted_with)
        calibration = ScoreCalibration(0.3, ScoreMap(1.0, 1.0, 0.0, 0.0), 0.3, options, torch.eye(2, 256))
    teacher = replace(with_competition(trained, competition), calibration=calibration)
    pseudo_label_run(teacher, LabelRequest(pairs, tmp_path, LabelOptions(queries="nouns")))
    assert said in capsys.readouterr().out
    name = json.loads((tmp_path / "00000.json").read_text())["settings"]["teacher"]
    assert ("calibration sha256" in name) == (said == "scores are probabilities")
    assert "max_detections=2000, candidates=2000" in name


def test_unreadable_images_stop_the_job_unless_they_are_to_be_skipped(tmp_path, trained, pairs):
    image, folder = PairShards(pairs)[0].image, tmp_path / "pairs"
    shard = [Pair(f"{k}", b"no image" if k < 5 else image, "an anchor", {}) for k in range(6)]
    write_pair_shards(folder, shard, pairs_per_shard=6)
    options = LabelOptions(queries="nouns", score_threshold=0.0)
    with pytest.raises(DataError, match=r"5 of 6 skipped.*--skip-unreadable"):
        pseudo_label_run(trained, LabelRequest(folder, tmp_path / "out", options))
    counts = pseudo_label_run(trained, LabelRequest(folder, tmp_path / "out", options, skip_unreadable=True))
    assert (counts.pairs, counts.pairs_with_boxes, counts.reasons) == (6, 1, {"F9": 5})


def test_names_that_read_alike_are_labeled_once_under_the_first(tmp_path):
    (tmp_path / "names.txt").write_text("hot dog\n\nAnchor\nhot_dog\nanchor\n")
    assert read_class_names(tmp_path / "names.txt") == ("hot dog", "Anchor")


def test_names_in_place_of_a_file_of_names_are_refused_with_what_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--pairs", "p", "--output", "o", "--queries", "classes",
                                      "--classes-file", "coin, stop sign"])  # fmt: skip
    with pytest.raises(ValueError, match="coin, stop sign does not exist; give a text file with one class name"):
        label_pairs.main()


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda:3"), (False, None)])
def test_a_process_of_torchrun_labels_on_its_own_gpu(monkeypatch, has_gpu, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert device_of_worker({"LOCAL_RANK": "3"}) == device
    assert device_of_worker({"RANK": "3"}) is None


@pytest.mark.parametrize("name", ["_", "()", "__ ( )"])
def test_a_class_name_that_reads_as_blank_is_refused_with_its_line(tmp_path, monkeypatch, name):
    names = tmp_path / "names.txt"
    names.write_text(f"anchor\n\n{name}\n")
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--pairs", "p", "--output", "o", "--queries", "classes",
                                      "--classes-file", str(names)])  # fmt: skip
    with pytest.raises(ValueError, match=r"names\.txt: line 3: .* is blank to the text tower"):
        label_pairs.main()


def test_a_size_of_images_is_of_ovds_own_detectors(tmp_path, trained, pairs):
    options = LabelOptions(queries="caption")
    with pytest.raises(ValueError, match="--size cannot be used with --teacher-hf"):
        pseudo_label_run(trained, LabelRequest(pairs, tmp_path, options, teacher_hf="owl", size=96))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "2"], "argument --threshold: '2' is not a number from 0 to 1"),
        (["--batch-size", "0"], "argument --batch-size: '0' is not a whole number of at least 1"),
        (["--max-boxes", "0"], "argument --max-boxes: '0' is not"),
        (["--rank", "-1", "--world", "2"], "argument --rank: '-1' is not a whole number of at least 0"),
        (["--rank", "0", "--world", "0"], "argument --world: '0' is not"),
        (["--classes-file", "names.txt"], "--queries classes and --classes-file FILE need each other"),
        (["--queries", "classes"], "--queries classes and --classes-file FILE need each other"),
    ],
)
def test_an_option_with_a_wrong_value_is_named(options, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "run", "--pairs", "p", "--output", "o", *options])
    with pytest.raises(SystemExit) as stopped:
        label_pairs.main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_workers_are_of_a_cluster(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "run", "--pairs", "p", "--output", "o", "--workers", "8"])
    with pytest.raises(ValueError, match="--workers needs --ray"):
        label_pairs.main()


@pytest.mark.parametrize(("teacher", "is_folder"), [("owl", True), ("google/owlv2", False)])
def test_workers_of_a_cluster_find_every_folder_wherever_they_run(teacher, is_folder, tmp_path, monkeypatch):
    requests = []

    def label_on_ray(request: RayRequest, **_: object) -> LabelCounts:
        requests.append(request)
        return total_counts([])

    monkeypatch.setattr("ovd.jobs.ray_label.label_on_ray", label_on_ray)
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "owl", "expert"):
        Path(folder).mkdir()
    options = ["--expert", "expert", "--teacher-hf", teacher, "--ray", "auto"]
    monkeypatch.setattr(sys, "argv", ["x", "run", "--pairs", "p", "--output", "o", *options])
    label_pairs.main()
    (request,) = requests
    assert (request.run, request.experts.folders) == (tmp_path / "run", (tmp_path / "expert",))
    assert (request.labeling.pairs, request.labeling.output) == (tmp_path / "p", tmp_path / "o")
    assert request.labeling.teacher_hf == (str(tmp_path / teacher) if is_folder else teacher)


@pytest.mark.parametrize("option", ["--shards", "--workers"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_numbers_of_shards_and_workers_are_positive(monkeypatch, capsys, option, value):
    monkeypatch.setattr(sys, "argv", ["x", "run", "--pairs", "p", "--output", "o", f"{option}={value}"])
    with pytest.raises(SystemExit, match="2"):
        label_pairs.main()
    assert f"argument {option}: '{value}' is not a whole number of at least 1" in capsys.readouterr().err
