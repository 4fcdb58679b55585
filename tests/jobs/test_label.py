"""Labeling a user's own images: the boxes found, the choice of images, and the command."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import bytes_of

from ovd.build.trained import build_inference, load_detector
from ovd.commands import check, label
from ovd.data.export.labeled_set import LabeledImage, LabeledSet
from ovd.data.images.files import collect_images
from ovd.data.loading.loader import LoaderOptions
from ovd.data.report import DataReport, Finding
from ovd.fault import Fault
from ovd.jobs.label_images import Thresholds, batches_by_padded_shape, label_images
from ovd.jobs.label_journal import LabelJournal, SelectedDetections
from ovd.jobs.label_output import LabeledSets, LabelOutput, WrittenLabels
from ovd.predictor import Predictor
from ovd.structures import Detections
from ovd.visualize.boxes import choose_shown

NAMES = ["anchor", "umbrella", "keyboard", "gear"]
LOW = 0.02
"""Score threshold low enough for a detector that has hardly been trained."""


@pytest.fixture(scope="module")
def photos(miniature_world, tmp_path_factory) -> Path:
    """Folder of scenes of several shapes, one in a subfolder, and of two unreadable files."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = sorted((miniature_world / "images").rglob("*.jpg"))[:7]
    for number, scene in enumerate(scenes):
        with Image.open(scene) as picture:
            width, height = picture.size
            shape = [(0, 0, width, height), (0, 0, width, height * 2 // 3), (0, 0, width // 2, height)][number % 3]
            picture.crop(shape).save(folder / f"{number}.png")
    (folder / "deeper").mkdir()
    shutil.move(folder / "6.png", folder / "deeper" / "6.png")
    (folder / "text.jpg").write_text("no image")
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:5000])
    (folder / "notes.txt").write_text("not an image by its name")
    return folder


def labels_of(start: Path, photos: Path, report: DataReport, batch_size: int, journal: Path) -> LabeledSets:
    root, paths = collect_images([str(photos)], recursive=True)
    trained = load_detector(start)
    inference, thresholds = build_inference(trained), Thresholds(dict.fromkeys(NAMES, LOW))
    with LabelJournal(journal, {}) as empty:
        return label_images(
            trained, inference, root, paths, thresholds, report, empty, LoaderOptions(batch_size=batch_size, workers=0)
        )


def test_boxes_are_those_of_the_predictor_whatever_the_batch(start, photos, tmp_path):
    report = DataReport(stops=False)
    labels = labels_of(start, photos, report, batch_size=3, journal=tmp_path / "3.partial")
    assert [image.file for image in labels.kept.images] == [*(f"{row}.png" for row in range(6)), "deeper/6.png"]
    assert report.counts() == {("F9", "skipped"): 2}
    assert report.num_used() == 7
    predictor = Predictor(load_detector(start))
    alone = labels_of(start, photos, DataReport(stops=False), batch_size=1, journal=tmp_path / "1.partial")
    for image, single in zip(labels.kept.images, alone.kept.images, strict=True):
        shown = choose_shown(predictor(photos / image.file, NAMES), LOW)
        large = (shown.boxes[:, 2:] - shown.boxes[:, :2] >= 2).all(dim=1)
        for found in (image, single):
            np.testing.assert_array_equal(found.classes, shown.classes[large])
            np.testing.assert_allclose(found.boxes, shown.boxes[large], atol=0.01)
            np.testing.assert_allclose(found.scores, shown.scores[large], atol=1e-4)
    assert labels.kept.num_boxes > 10


def test_batches_hold_images_of_one_padded_shape_and_each_image_once():
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 900, (60, 2))
    batches = batches_by_padded_shape(sizes, 4, size=256, divisor=64)
    assert sorted(row for batch in batches for row in batch) == list(range(60))
    for batch in batches:
        assert len(batch) <= 4
        resized = np.maximum(1, (sizes[batch] * 256 / sizes[batch].max(axis=1, keepdims=True)).round())
        assert len(np.unique(np.ceil(resized / 64), axis=0)) == 1
    assert batches_by_padded_shape(np.zeros((0, 2), np.int64), 4, size=256, divisor=64) == []


def test_candidates_are_below_the_threshold_and_at_a_place_of_their_own():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90], [0, 0, 10, 9]])
    found = Detections(boxes, torch.tensor([0.9, 0.5, 0.45, 0.2, 0.1]), torch.tensor([0, 1, 1, 1, 0]))
    min_scores = {"anchor": 0.6, "gear": 0.5}
    answer = Thresholds(min_scores).select(found)
    assert answer.kept.scores.tolist() == pytest.approx([0.9])
    assert answer.below.scores.tolist() == pytest.approx([0.45])
    answer = Thresholds(min_scores, overlapping=True).select(found)
    assert answer.kept.scores.tolist() == pytest.approx([0.9, 0.5])


def test_images_in_folders_below_are_named_where_they_are_left_out(photos, capsys):
    collect_images([str(photos)], recursive=False)
    words = f"warning: {photos}: 1 image in subfolders is left out; the first: {photos}/deeper/6.png"
    assert capsys.readouterr().err == f"{words} (--recursive also reads these)\n"
    collect_images([str(photos)], recursive=True)
    collect_images([str(photos / "deeper")], recursive=False)
    assert capsys.readouterr().err == ""


def test_folders_files_and_patterns(photos, tmp_path):
    def names(*sources: str, recursive: bool = False) -> list[str]:
        root, paths = collect_images([str(photos / source) for source in sources], recursive=recursive)
        return [str(path.relative_to(root)) for path in paths]

    top = [f"{row}.png" for row in range(6)]
    assert names("") == [*top, "half.png", "text.jpg"]
    assert names("", recursive=True) == [*top, "deeper/6.png", "half.png", "text.jpg"]
    assert names("[12].png", "2.png", "notes.txt") == ["1.png", "2.png", "notes.txt"]
    assert names("deeper", "3.png") == ["deeper/6.png", "3.png"]
    for source, words in (("none", "not a folder or file"), ("*.bmp", "matches no image")):
        with pytest.raises(ValueError, match=words):
            names(source)
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(ValueError, match="--recursive"):
        collect_images([str(tmp_path / "empty")], recursive=False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path | float) -> None:
    monkeypatch.setattr(sys, "argv", ["ovd label", *map(str, arguments)])
    label.main()


def test_the_command_writes_what_checks_and_trains(start, photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "words.txt").write_text("anchor\n\numbrella, open\nanchor\n")
    asked = [photos, "--classes-file", tmp_path / "words.txt", "--run", start, "--threshold", LOW, "--workers", 0]
    run(monkeypatch, *asked, "--output", tmp_path / "boxes.json", "--review", 3)
    printed = capsys.readouterr().out
    assert "6 images" in printed
    assert f"with a score of at least {LOW}, 0 images without any" in printed
    assert "2 images could not be read: boxes.json.report.json" in printed
    assert "boxes.review.html shows the 3 boxes" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "words.txt", "boxes.json", "boxes.review.html", "boxes.json.report.json",
    }  # fmt: skip
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["anchor", "umbrella, open"]
    assert all(row["score"] >= LOW for row in content["annotations"])
    report = json.loads((tmp_path / "boxes.json.report.json").read_text())
    assert report["skipped_by_code"] == {"F9": 2}
    monkeypatch.setattr(
        sys, "argv", ["check", "coco", "--annotations", str(tmp_path / "boxes.json"), "--images", str(photos)]
    )
    check.main()  # exits with code 2 on any fault
    assert "no faulty records" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"boxes\.json already exists"):
        run(monkeypatch, *asked, "--output", tmp_path / "boxes.json")
    (tmp_path / "boxes.json").unlink()
    with pytest.raises(ValueError, match=r"boxes\.json\.report\.json already exists"):
        run(monkeypatch, *asked, "--output", tmp_path / "boxes.json")


def test_a_minimum_for_one_name_and_a_folder_of_yolo(start, photos, tmp_path, monkeypatch, capsys):
    run(
        monkeypatch, photos / "0.png", "--classes", f"anchor:0.999, gear:{LOW}", "--run", start, "--threads", 1,
        "--output", tmp_path / "labels", "--to", "yolo", "--review", 0, "--workers", 0,
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"labels", "labels.report.json"}
    lines = (tmp_path / "labels" / "labels" / "0.txt").read_text().splitlines()
    assert lines
    assert {line.split()[0] for line in lines} == {"1"}
    assert "with a score of at least 0.45, or the minimum score after its name, " in capsys.readouterr().out


def test_images_at_a_time_and_addresses_are_those_asked_for(start, photos, tmp_path, monkeypatch):
    sizes = []

    def watched(*arguments):
        sizes.append(arguments[-1].batch_size)
        return label_images(*arguments)

    monkeypatch.setattr("ovd.jobs.label.label_images", watched)
    run(
        monkeypatch, photos / "0.png", "--classes", f"gear:{LOW}", "--run", start, "--threads", 1, "--workers", 0,
        "--output", tmp_path / "tasks.json", "--to", "label_studio", "--image-url", "https://photos.org/",
        "--batch-size", 3, "--review", 0,
    )  # fmt: skip
    assert sizes == [3]
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["image"] == "https://photos.org/0.png"


def test_file_names_that_are_not_utf8_are_written_or_refused_before_anything_is_detected(
    start, photos, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / os.fsdecode(b"gr\xfcn")
    folder.mkdir()
    shutil.copy(photos / "0.png", folder / os.fsdecode(b"fot\xf6.png"))
    asked = [folder, "--classes", f"anchor:{LOW}", "--threads", 1, "--workers", 0, "--review", 0]
    with pytest.raises(ValueError, match=r"voc cannot hold the names of 1 of 1 image, .* 'fot\\udcf6\.png'"):
        run(monkeypatch, *asked, "--run", tmp_path, "--output", tmp_path / "voc", "--to", "voc")
    for output in ("boxes.json", "labels"):
        to = "yolo" if output == "labels" else "coco"
        run(monkeypatch, *asked, "--run", start, "--output", tmp_path / output, "--to", to)
        assert "1 image, " in capsys.readouterr().out
    assert os.listdir(os.fsencode(tmp_path / "labels" / "labels")) == [b"fot\xf6.txt"]


def test_no_readable_image_is_an_error_that_names_the_first(start, photos, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none of 1 image can be read; the first: .*text\.jpg"):
        run(monkeypatch, photos / "text.jpg", "--classes", "a", "--run", start, "--output", tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_labeling_goes_on_to_the_same_files(start, photos, tmp_path, monkeypatch, capsys):
    asked = [photos, "--recursive", "--classes", "anchor, umbrella", "--run", start, "--threshold", LOW, "--workers", 0]
    whole, parts = tmp_path / "whole" / "boxes.json", tmp_path / "parts" / "boxes.json"
    run(monkeypatch, *asked, "--output", whole)
    real, left = LabelJournal.add, 3

    def add(journal: LabelJournal, *answer: Any) -> None:
        nonlocal left
        real(journal, *answer)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(LabelJournal, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, *asked, "--output", parts)
    assert set(bytes_of(parts.parent)) == {"boxes.json.partial"}
    with (parts.parent / "boxes.json.partial").open("ab") as file:
        file.write(b'["a line that was cut')
    with pytest.raises(ValueError, match=r"partial is from an interrupted call with other settings"):
        run(monkeypatch, *asked, "--output", parts, "--overlapping")
    capsys.readouterr()
    left = 99
    run(monkeypatch, *asked, "--output", parts)
    assert left == 99 - 4  # of seven readable images
    assert "resuming from" in capsys.readouterr().out
    assert bytes_of(parts.parent) == bytes_of(whole.parent)


def test_a_repair_of_an_image_that_an_interruption_left_unlabeled_is_counted_once(
    start, miniature_world, tmp_path, monkeypatch
):
    scene = next((miniature_world / "images").rglob("*.jpg")).read_bytes()
    (tmp_path / "a.jpg").write_bytes(scene)
    (tmp_path / "without_end.jpg").write_bytes(scene.removesuffix(b"\xff\xd9"))
    real = LabelJournal.add

    def add(journal: LabelJournal, name: str, *answer: Any) -> None:
        if name == "without_end.jpg":
            raise KeyboardInterrupt
        real(journal, name, *answer)

    with monkeypatch.context() as patched:
        patched.setattr(LabelJournal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            labels_of(start, tmp_path, DataReport(stops=False), 1, tmp_path / "journal")
    report = DataReport(stops=False)
    labels_of(start, tmp_path, report, 1, tmp_path / "journal")
    assert (report.num_used(), report.counts()[Finding("F9", "repaired")]) == (2, 1)


@pytest.mark.parametrize("what", ["write_review", "export_boxes"])
def test_an_interruption_while_the_files_are_written_loses_nothing(what, start, photos, tmp_path, monkeypatch):
    asked = [photos, "--recursive", "--classes", "anchor, umbrella", "--run", start, "--threshold", LOW, "--workers", 0]
    whole, parts = tmp_path / "whole" / "boxes.json", tmp_path / "parts" / "boxes.json"
    run(monkeypatch, *asked, "--output", whole)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"ovd.jobs.label_output.{what}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(patched, *asked, "--output", parts)
    assert (parts.parent / "boxes.json.partial").is_file()
    monkeypatch.setattr(LabelJournal, "add", interrupt)  # fails if any image is labeled again
    run(monkeypatch, *asked, "--output", parts)
    assert bytes_of(parts.parent) == bytes_of(whole.parent)


def test_files_lie_beside_the_labels_and_none_may_exist_unless_a_labeling_goes_on(tmp_path):
    file = LabelOutput(tmp_path / "new" / "my.tasks.json", "label_studio", "ovd", review_boxes=5)
    names = ("my.tasks.json.report.json", "my.tasks.json.partial", "my.tasks.review.html")
    assert (file.report, file.journal, file.review) == tuple(tmp_path / "new" / name for name in names)
    folder = LabelOutput(tmp_path / "labels.v2", "yolo", "ovd", review_boxes=5)
    assert folder.review == tmp_path / "labels.v2.review.html"
    assert LabelOutput(folder.path, "yolo", "ovd").review is None
    file.prepare_folder()
    for name in ("my.tasks.config.xml", *names[::2]):
        (tmp_path / "new" / name).touch()
        with pytest.raises(ValueError, match=f"{name} already exists"):
            file.prepare_folder()
        (tmp_path / "new" / name).unlink()
    for name in names:
        (tmp_path / "new" / name).touch()
    file.prepare_folder()
    file.path.touch()
    with pytest.raises(ValueError, match=r"my\.tasks\.json already exists"):
        file.prepare_folder()


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_only_a_labeling_without_a_box_asks_for_a_lower_threshold(num_boxes, tmp_path):
    boxes = np.tile(np.array([1, 2, 9, 9], np.float32), (num_boxes, 1))
    image = LabeledImage("a.jpg", 30, 40, boxes, np.zeros(num_boxes, np.int64), np.ones(num_boxes, np.float32))
    output = LabelOutput(tmp_path / "boxes.json", "coco", "ovd", review_boxes=5)
    kept = LabeledSet(tmp_path, ("anchor",), (image,))
    lines = WrittenLabels(kept, DataReport(), output, "score of at least 0.45", 0).summary.splitlines()
    assert any("`ovd detect`" in line and "a lower --threshold" in line for line in lines) == (num_boxes == 0)


ANSWER = SelectedDetections(Detections(torch.rand(2, 4), torch.rand(2), torch.tensor([0, 0])), Detections.empty())


def test_a_journal_that_was_removed_while_its_lock_was_waited_for_is_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "partial"

    def lock_once_it_is_removed(file):
        path.unlink()
        return True

    monkeypatch.setattr("ovd.jobs.label_journal.lock_file", lock_once_it_is_removed)
    with pytest.raises(ValueError, match="is in use by another labeling process"):
        LabelJournal(path, {"names": ["anchor"]})
    assert not path.exists()


def test_an_image_that_has_changed_is_labeled_again_and_repairs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("ovd.files.LOCK_TIMEOUT_S", 0)
    path, settings = tmp_path / "partial", {"names": ["anchor"]}
    with LabelJournal(path, settings) as journal:
        assert not journal.is_resumed
        journal.add("a.png", [3, 17], ANSWER)
        journal.add_repaired([Fault("F9", "a.png: without its end")])
        with pytest.raises(ValueError, match="is in use by another labeling process"):
            LabelJournal(path, settings)
    with LabelJournal(path, settings) as journal:
        assert journal.is_resumed
        assert journal.repaired == [Fault("F9", "a.png: without its end")]
        before = journal.find("a.png", [3, 17])
        assert before is not None
        for name in ("boxes", "scores", "classes"):
            assert torch.equal(getattr(before.kept, name), getattr(ANSWER.kept, name))
            assert len(getattr(before.below, name)) == 0
        assert journal.find("a.png", [3, 18]) is None
        assert journal.find("b.png", [3, 17]) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}\n', "line 1: not written by ovd label .*move the file away"),
        ("my half download, without a line end", "line 1: not written by ovd label"),
        ('{"ovd label": 1, "names": ["gear"]}\n', r"other settings \(names was \['gear'\], is \['anchor'\]\)"),
        ('{"ovd label": 1, "names": ["anchor"]}\n{}\n', "line 2: not written by ovd label"),
        (
            '{"ovd label": 1, "names": ["anchor"]}\n'
            '["a", [1, 2], {"boxes": [[1, 2, 3]], "scores": [1], "classes": [0]}, '
            '{"boxes": [], "scores": [], "classes": []}]\n',
            "line 2: not written by ovd label",
        ),
    ],
)
def test_what_is_no_journal_of_this_call_stays_and_is_named(content, words, tmp_path):
    path = tmp_path / "partial"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        LabelJournal(path, {"names": ["anchor"]})
    assert path.read_text() == content


def test_a_journal_whose_first_line_was_cut_begins_again(tmp_path):
    (tmp_path / "partial").write_text('{"ovd lab')
    with LabelJournal(tmp_path / "partial", {}) as journal:
        assert not journal.is_resumed
    assert not list(tmp_path.iterdir())
