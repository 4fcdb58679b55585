"""Exported boxes read again by ovd's own readers, and by the rules that other tools document."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from ovd.choices import DataFormatName
from ovd.data.annotations import load_annotations
from ovd.data.export.boxes import check_files, check_names, export_boxes
from ovd.data.export.labeled_set import LabeledImage, LabeledSet
from ovd.data.formats.options import FormatOptions
from ovd.data.import_boxes import import_boxes
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport

NAMES = ("cat, black", "ü & <b>", "key: value", "no box")
# Names that are hard to export: an image without boxes, two that differ in their suffix alone, one named like
# another with its folder, and folders named like those of YOLO's layout.
FILES = {
    "a.jpg": (40, 60), "a.png": (51, 33), "sub/a.jpg": (200, 301), "sub__a.png": (37, 37), "images/b c.jpg": (90, 70),
    "empty.jpg": (20, 30),
}  # fmt: skip


@pytest.fixture
def labeled(tmp_path) -> LabeledSet:
    rng = np.random.default_rng(0)
    root = tmp_path / "images" / "photos"
    images = []
    for file, (height, width) in FILES.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(root / file)
        num = 0 if file == "empty.jpg" else 5
        limits = np.array([width, height])
        start = rng.uniform(0, limits - 3, (num, 2))
        end = start + rng.uniform(2, limits - start)
        boxes = np.concatenate([start, end], axis=1).astype(np.float32)
        if num:
            boxes[0] = [0, 0, width, height]
            boxes[1] = [width - 2, height - 2, width, height]
        images.append(
            LabeledImage(file, height, width, boxes, rng.integers(0, 3, num), rng.random(num).astype(np.float32))
        )
    return LabeledSet(root, NAMES, tuple(images))


def read(annotations: Path, images: Path | None, format: DataFormatName, **options: Any) -> AnnotationIndex:
    """Read annotations as training does, and check that nothing is repaired or left out."""
    report = DataReport()
    index = load_annotations(annotations, images, format=format, report=report, options=FormatOptions(**options))
    assert report.counts() == {}
    return index


def check_same(index: AnnotationIndex, labeled: LabeledSet, tolerance_px: float) -> None:
    """Check that the index has every image of the set, found by its file, with the same boxes in the same order."""
    assert [category.name for category in index.categories] == list(NAMES)
    records = {index.record(row).path.resolve(): index.record(row) for row in range(len(index))}
    assert len(records) == len(labeled.images)
    for image in labeled.images:
        record = records[(labeled.root / image.file).resolve()]
        assert (record.height, record.width) == (image.height, image.width)
        np.testing.assert_allclose(record.labels.boxes, image.boxes, atol=tolerance_px)
        np.testing.assert_array_equal(record.labels.classes, image.classes)


def test_coco_is_read_as_it_was(labeled, tmp_path):
    export_boxes(labeled, tmp_path / "out" / "boxes.json", "coco", source="test")
    check_same(read(tmp_path / "out" / "boxes.json", labeled.root, "coco"), labeled, 0.0051)
    report = DataReport()
    imported = import_boxes(tmp_path / "out" / "boxes.json", labeled.root, "coco", report).content
    assert (len(imported["images"]), len(imported["annotations"])) == (6, labeled.num_boxes)
    assert report.counts() == {}
    official = COCO(str(tmp_path / "out" / "boxes.json"))
    scores = np.concatenate([image.scores for image in labeled.images])
    assert [row["score"] for row in official.dataset["annotations"]] == pytest.approx(scores, abs=6e-5)
    assert len(official.getAnnIds(imgIds=[2])) == 5


def test_coco_is_as_cvat_asks(labeled, tmp_path):
    """The COCO export suits Datumaro, which reads COCO for CVAT.

    Datumaro needs these types; a box is a rectangle if its segmentation is empty, a category of id 0 is no label, and
    an image is found by its name without suffix.
    """
    export_boxes(labeled, tmp_path / "instances_default.json", "coco", source="test")
    content = json.loads((tmp_path / "instances_default.json").read_text())
    assert all(isinstance(content[key], list) for key in ("images", "annotations", "categories"))
    ids = {row["id"] for row in content["images"]}
    categories = {row["id"]: row["name"] for row in content["categories"]}
    assert all(type(key) is int and key > 0 for key in categories)
    for row in content["annotations"]:
        assert row["segmentation"] == []
        assert {key: type(row[key]) for key in ("id", "image_id", "category_id", "iscrowd")} == dict.fromkeys(
            ("id", "image_id", "category_id", "iscrowd"), int
        )
        assert row["image_id"] in ids
        assert row["category_id"] in categories
        assert len(row["bbox"]) == 4
        assert 0 <= row["score"] <= 1
    assert len({row["id"] for row in content["annotations"]}) == len(content["annotations"])


def test_yolo_is_read_as_it_was(labeled, tmp_path):
    export_boxes(labeled, tmp_path / "yolo", "yolo", source="test")
    index = read(tmp_path / "yolo" / "data.yaml", None, "yolo")
    check_same(index, labeled, 1e-6 * 301 + 1e-5)
    labels = {path.stem for path in (tmp_path / "yolo" / "labels").iterdir()}
    assert labels == {path.stem for path in (tmp_path / "yolo" / "images").iterdir()}
    assert len(labels) == 6
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"] == dict(enumerate(NAMES))
    with (tmp_path / "yolo" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        line = (tmp_path / "yolo" / row["labels"]).read_text().splitlines()[int(row["line"]) - 1]
        assert NAMES[int(line.split()[0])] == row["class"]
    scores = np.concatenate([image.scores for image in labeled.images])
    assert [float(row["score"]) for row in rows] == pytest.approx(scores, abs=6e-5)


def test_yolo_copies_images_when_asked(labeled, tmp_path):
    export_boxes(labeled, tmp_path / "yolo", "yolo", source="test", copy_images=True)
    for path in (tmp_path / "yolo" / "images").iterdir():
        assert not path.is_symlink()
    assert (tmp_path / "yolo" / "images" / "a.jpg").read_bytes() == (labeled.root / "a.jpg").read_bytes()


def test_voc_is_read_as_it_was(labeled, tmp_path):
    export_boxes(labeled, tmp_path / "voc", "voc", source="test")
    names = tmp_path / "voc" / "class_names.txt"
    for annotations in (tmp_path / "voc" / "Annotations", tmp_path / "voc" / "ImageSets" / "Main" / "train.txt"):
        check_same(read(annotations, labeled.root, "voc", class_names=names), labeled, 0.501)
    scores = [
        float(score.text or "")
        for stem in (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").read_text().split("\n")[:-1]
        for score in ElementTree.parse(tmp_path / "voc" / "Annotations" / f"{stem}.xml").getroot().iter("score")
    ]
    assert scores == pytest.approx(np.concatenate([image.scores for image in labeled.images]), abs=6e-5)


def test_voc_names_no_file_like_another_image_of_the_folder(labeled, tmp_path):
    """No XML file is named like another image: a.png becomes a_2.xml, unless there is an a_2.png that was not
    labeled."""
    for name in ("a_2.png", "sub__a_2.jpg", "sub__a_3.jpg"):
        Image.new("RGB", (9, 9)).save(labeled.root / name)
    export_boxes(labeled, tmp_path / "voc", "voc", source="test")
    options = {"class_names": tmp_path / "voc" / "class_names.txt"}
    check_same(read(tmp_path / "voc" / "Annotations", labeled.root, "voc", **options), labeled, 0.501)


def test_label_studio_is_read_by_its_documented_rules(labeled, tmp_path):
    """The export follows Label Studio's documented rules.

    A length is a percentage of original_width or original_height; from_name and to_name are those of the setup; the
    labels are values of the setup.
    """
    export_boxes(labeled, tmp_path / "tasks.json", "label_studio", source="ovd test", image_url="/files/?d=my/")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    setup = ElementTree.parse(tmp_path / "tasks.config.xml").getroot()
    shown, labels = setup.find("Image"), setup.find("RectangleLabels")
    assert shown is not None
    assert labels is not None
    assert [label.get("value") for label in labels] == list(NAMES)
    assert labels.get("toName") == shown.get("name")
    assert len(tasks) == len(labeled.images)
    for task, image in zip(tasks, labeled.images, strict=True):
        field = (shown.get("value") or "").removeprefix("$")
        assert unquote(task["data"][field]) == f"/files/?d=my/{image.file}"
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "ovd test"
        boxes = []
        for item in prediction["result"]:
            assert (item["type"], item["from_name"], item["to_name"]) == (
                "rectanglelabels", labels.get("name"), shown.get("name")
            )  # fmt: skip
            value, width, height = item["value"], item["original_width"], item["original_height"]
            x, y = value["x"] / 100 * width, value["y"] / 100 * height
            boxes.append([x, y, x + value["width"] / 100 * width, y + value["height"] / 100 * height])
        assert len({item["id"] for item in prediction["result"]}) == len(boxes)
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4), image.boxes, atol=1e-4)
        names = [item["value"]["rectanglelabels"] for item in prediction["result"]]
        assert names == [[NAMES[name]] for name in image.classes]
        assert [item["score"] for item in prediction["result"]] == pytest.approx(image.scores, abs=6e-5)
        assert prediction.get("score") == (pytest.approx(image.scores.min(), abs=6e-5) if len(boxes) else None)


def with_first_called(labeled: LabeledSet, file: str) -> LabeledSet:
    shutil.move(labeled.root / labeled.images[0].file, labeled.root / file)
    return replace(labeled, images=(replace(labeled.images[0], file=file), *labeled.images[1:]))


def test_a_name_that_is_not_utf8_is_read_as_it_was(labeled, tmp_path):
    name = os.fsdecode(b"fot\xf6.jpg")
    labeled = with_first_called(labeled, name)
    export_boxes(labeled, tmp_path / "boxes.json", "coco", source="test")
    export_boxes(labeled, tmp_path / "yolo", "yolo", source="test")
    export_boxes(labeled, tmp_path / "tasks.json", "label_studio", source="test")
    of_json = read(tmp_path / "boxes.json", labeled.root, "coco")
    of_folder = read(tmp_path / "yolo" / "data.yaml", None, "yolo")
    for index in (of_json, of_folder):
        check_same(index, labeled, 0.0051)
        assert index.fingerprint() != replace(index, image_files=("other.jpg", *index.image_files[1:])).fingerprint()
    assert b"labels/fot\xf6.txt,1," in (tmp_path / "yolo" / "scores.csv").read_bytes()
    address = json.loads((tmp_path / "tasks.json").read_text())[0]["data"]["image"]
    assert unquote_to_bytes(address).endswith(b"?d=fot\xf6.jpg")


@pytest.mark.parametrize("name", ["fot\udcf6.jpg", "a\x01b.jpg", "a\nb.jpg"])
def test_voc_refuses_names_that_its_xml_cannot_hold(labeled, tmp_path, name):
    with pytest.raises(ValueError, match=r"the names of 1 of 6 images, .*; the first is '(fot|a)\\.*rename them"):
        export_boxes(with_first_called(labeled, name), tmp_path / "voc", "voc", source="test")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    check_files([name], "yolo")
    check_files(["Aufnahme 3\u202fPM, \u65e5\u672c.jpg"], "voc")


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_names_that_readers_of_a_folder_pass_over_are_refused(format):
    for name in ("noext", ".dot.jpg", "a/x.detections.jpg", "notes.txt"):
        with pytest.raises(ValueError, match=f"readers of {format} would ignore 1 of 2 images"):
            check_files(["sound.jpg", name], format)
        check_files([name], "coco")
    check_files([".cam/sound.jpg"], format)


def test_voc_refuses_names_that_lists_cannot_hold():
    for name in (" x.jpg", "x .jpg"):
        with pytest.raises(ValueError, match="begin or end with a space"):
            check_files([name], "voc")
        check_files([name], "yolo")


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_images_of_a_hidden_folder_are_read_as_they_were(format, labeled, tmp_path):
    hidden = labeled.root / ".cam"
    hidden.mkdir()
    first, *others = labeled.images
    (labeled.root / first.file).rename(hidden / "a.jpg")
    labeled = replace(labeled, images=(replace(first, file=".cam/a.jpg"), *others))
    export_boxes(labeled, tmp_path / "out", format, source="test")
    out = tmp_path / "out"
    if format == "yolo":
        index = read(out / "data.yaml", None, format)
    else:
        names = out / "class_names.txt"
        index = read(out / "ImageSets" / "Main" / "train.txt", labeled.root, format, class_names=names)
    check_same(index, labeled, 0.51)


@pytest.mark.parametrize("format", ["coco", "yolo", "voc", "label_studio"])
def test_nothing_is_replaced(format, labeled, tmp_path):
    export_boxes(labeled, tmp_path / "out", format, source="test")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="exists"):
        export_boxes(labeled, tmp_path / "out", format, source="test")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_appears_whole_or_not_at_all(labeled, tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OSError, match="--copy-images"):
        export_boxes(labeled, tmp_path / "yolo", "yolo", source="test")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "at least one"), (["a", " "], "class name 2"), (["a\nb"], "cannot be printed"), (["a", "b", "a"], "twice")],
)
def test_faulty_names_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        check_names(names)
