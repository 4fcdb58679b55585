"""`ovd check` as a user calls it: its verdicts, the counts of usable records, and its exit code."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ovd.commands import check
from ovd.data.annotations import load_annotations
from ovd.data.check import check_images
from ovd.data.formats.coco_json import read_coco_json
from ovd.data.formats.supported import FORMATS
from ovd.data.formats.table import AnnotationTable
from ovd.data.loading.small_objects import SampleSizes, count_small_objects, small_objects
from ovd.data.report import DataReport


def content(num_images: int) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in range(num_images)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [2, 3, 10, 12]} for n in range(num_images)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def run(folder: Path, rows: dict[str, Any]) -> int:
    """Run `ovd check` on these annotations and return its exit code."""
    path = folder / "boxes.json"
    path.write_text(json.dumps(rows))
    sys.argv = ["check", "coco", "--annotations", str(path), "--images", str(folder)]
    try:
        check.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(sys, "argv", [])
    for number in range(20):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_a_good_set(folder, capsys):
    assert run(folder, content(20)) == 0
    shown = capsys.readouterr().out
    assert "training: uses all 20 images, uses all 20 boxes\nevaluation: uses all of 20 images" in shown


def test_boxes_of_images_that_are_left_out_count_for_nothing(folder, capsys):
    rows = content(20)
    (folder / "4.png").unlink()
    assert run(folder, rows) == 2
    shown = capsys.readouterr().out
    assert "uses 19 of 20 images; the others are left out and counted, uses 19 of 20 boxes" in shown
    assert "        9          9     cat" in shown
    assert "evaluation: stops, 1 of 20 images cannot be used" in shown


def test_boxes_that_are_left_out_at_their_size_are_not_left_out_again(folder):
    rows = content(20)
    rows["annotations"] += [
        {"id": 100 + number, "image_id": 4, "category_id": 1, "bbox": [number, 3, 2, 2]} for number in range(10)
    ]
    path = folder / "boxes.json"
    path.write_text(json.dumps(rows))
    (folder / "4.png").unlink()
    report = DataReport(stops=False)
    index = load_annotations(path, folder, format="coco", report=report)
    count_small_objects(index, report, SampleSizes(size=20, largest_scale=1))
    usable = check_images(index, report, small_objects(index, SampleSizes(size=20, largest_scale=1)))
    assert (len(usable), len(usable.boxes.values)) == (19, 19)
    assert (report.num_used("box"), report.num_seen("box")) == (19, 30)


def test_classes_are_counted_in_all_images_where_none_can_be_used(folder, capsys):
    rows = content(20)
    for image in rows["images"]:
        image["file_name"] = f"gone/{image['file_name']}"
    assert run(folder, rows) == 2
    shown = capsys.readouterr().out
    assert "2 classes, 0 of them without objects" in shown
    assert "       10         10     cat" in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotations": []}, "none has a box, so the metrics would be meaningless"),
        ({"annotations": [], "categories": []}, "evaluation: stops, error[F1]: "),
    ],
)
def test_a_set_that_nothing_can_be_learned_from(folder, capsys, change, words):
    assert run(folder, content(20) | change) == 2
    shown = capsys.readouterr().out
    assert "training: stops, error[F1]" in shown
    assert words in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["pairs", "--shards", "cc12m", "--no-images", "--xyxy"], "--no-images, --xyxy cannot be used with pairs"),
        (
            ["coco", "--annotations", "boxes.json", "--no-images", "--shards", "cc12m"],
            "--shards cannot be used with coco",
        ),
    ],
)
def test_options_that_a_set_has_no_use_for_are_refused(options, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", *options])
    with pytest.raises(SystemExit, match="2"):
        check.main()
    assert words in capsys.readouterr().err


def test_sizes_from_images_without_images(folder, capsys):
    path = folder / "boxes.json"
    path.write_text(json.dumps(content(2)))
    sys.argv = ["check", "coco", "--annotations", str(path), "--no-images", "--sizes-from-images"]
    with pytest.raises(SystemExit):
        check.main()
    assert "--sizes-from-images needs --images FOLDER" in capsys.readouterr().err


def test_sides_that_are_swapped_stop_both(folder, capsys):
    rows = content(20)
    rows["images"] = [row | {"height": 40, "width": 30} for row in rows["images"]]
    rows["annotations"] = [row | {"bbox": [25, 3, 10, 12]} for row in rows["annotations"]]
    assert run(folder, rows) == 2
    shown = capsys.readouterr().out
    assert "training: stops, error[F12]: " in shown
    assert "evaluation: stops, error[F12]: " in shown
    assert shown.count("in 20 images, boxes reach outside the recorded height and width") == 2


def test_faulty_boxes_are_too_many_of_those_of_the_images_that_are_there(folder, capsys):
    """Faulty boxes are counted against the boxes of the images that exist, as in training: 10 of 901 are too many, 10
    of 1,101 would not be."""
    rows = content(20)
    rows["annotations"] = [
        {"id": number, "image_id": number % 20, "category_id": 1, "bbox": [number % 7, number % 5, 10, 12]}
        for number in range(901)
    ]
    for row in rows["annotations"][20:30]:
        row["bbox"] = [500, 500, 10, 10]
    rows["annotations"] += [
        {"id": 2000 + number, "image_id": 20 + number % 4, "category_id": 1, "bbox": [1, 2, 10, 12]}
        for number in range(200)
    ]
    rows["images"] += [{"id": n, "file_name": f"{n}.png"} for n in range(20, 24)]
    assert run(folder, rows) == 2
    assert "training: stops, error[F5]: 10 of 901 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "evaluation: stops, error[F6]: "),
        ({"area": 9.0, "ignore": 1}, "evaluation: stops, error[F7]: "),
        ({"area": 0.0}, "evaluation: uses all of 20 images; none has a box, so the metrics would be meaningless"),
        ({"area": 9.0}, "evaluation: uses all of 20 images\n"),
    ],
)
def test_what_an_evaluation_needs_besides(folder, capsys, monkeypatch, changed, words):
    rows = content(20)
    labels: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    rows["images"] = [row | labels for row in rows["images"]]
    rows["categories"] = [row | {"synonyms": [], "frequency": "f"} for row in rows["categories"]]
    rows["annotations"] = [row | changed for row in rows["annotations"]]
    path = folder / "boxes.json"
    path.write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["check", "lvis", "--annotations", str(path), "--images", str(folder)])
    with suppress(SystemExit):
        check.main()
    shown = capsys.readouterr().out
    assert "training: uses all 20 images, uses all 20 boxes" in shown
    assert words in shown


@pytest.mark.parametrize("area", [100.0, "large"])  # the second makes evaluation impossible
def test_a_set_is_read_once_so_that_warnings_and_counts_come_once(folder, capsys, monkeypatch, area):
    times_read = 0

    def counted(*arguments: Any, **options: Any) -> AnnotationTable:
        nonlocal times_read
        times_read += 1
        return read_coco_json(*arguments, **options, federated=False)

    monkeypatch.setitem(FORMATS, "coco", replace(FORMATS["coco"], read=counted))
    rows = content(20)
    rows["annotations"] = [row | {"area": area} for row in (*rows["annotations"], rows["annotations"][3] | {"id": 99})]
    rows["annotations"][5]["bbox"] = [35, 3, 10, 12]
    assert run(folder, rows) == (2 if area == "large" else 0)
    shown = capsys.readouterr()
    assert times_read == 1
    assert shown.err.count("warning[F2]: ") == 1
    assert shown.out.count("F2 noticed: 1\n") == 1
    assert shown.out.count("F5 repaired: 1\n") == 1
    assert "training: uses all 20 images, uses all 21 boxes" in shown.out


def test_a_folder_of_yolo_that_has_no_splits(tmp_path, capsys, monkeypatch):
    for number in range(2):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"{number} 0.5 0.5 0.4 0.4\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    monkeypatch.setattr(sys, "argv", ["check", "yolo", "--annotations", str(tmp_path)])
    check.main()
    assert "evaluation: uses all of 2 images" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["labelme", "cvat", "via"])
def test_of_a_format_that_is_only_imported_it_is_said_how(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", name, "--annotations", "photos"])
    with pytest.raises(SystemExit):
        check.main()
    assert f"convert it with `ovd import-boxes {name}`" in capsys.readouterr().err
