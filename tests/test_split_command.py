"""`ovd split`: every image is in one of two parts, and every class with several images is in both."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovd.commands import split
from ovd.data.split import draw_parts
from ovd.jobs.split import split_annotations


def content(classes: Iterable[Iterable[int]], box: tuple[float, ...] = (2, 3, 10, 12)) -> dict[str, Any]:
    """Make annotations of images with these classes; class 1 is called "class 1"."""
    rows = [(image, class_id) for image, of_image in enumerate(classes) for class_id in of_image]
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 30, "width": 40} for n, _ in enumerate(classes)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": class_id, "bbox": list(box)}
            for n, (image, class_id) in enumerate(rows)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in sorted({class_id for _, class_id in rows})],
    }


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: dict[str, Any], *options: str) -> list[dict[str, Any]]:
    """Run `ovd split` and return both parts."""
    (folder / "all.json").write_text(json.dumps(rows))
    parts = [folder / "first.json", folder / "second.json"]
    for part in parts:
        part.unlink(missing_ok=True)
    arguments = [str(folder / "all.json"), "--first", str(parts[0]), "--second", str(parts[1]), *options]
    monkeypatch.setattr("sys.argv", ["split", *arguments])
    split.main()
    return [json.loads(part.read_text()) for part in parts]


def test_a_file_of_corners_is_split_as_it_is(tmp_path, monkeypatch):
    corners = (20.0, 15.0, 38.0, 28.0)
    rows = content([[1]] * 10, corners)
    with pytest.raises(ValueError, match="--xyxy"):
        run(tmp_path, monkeypatch, rows)
    parts = run(tmp_path, monkeypatch, rows, "--xyxy")
    assert [len(part["images"]) for part in parts] == [8, 2]
    assert all(row["bbox"] == list(corners) for part in parts for row in part["annotations"])
    assert sorted(row["id"] for part in parts for row in part["annotations"]) == list(range(10))


def test_a_folder_that_cannot_be_written_to_is_named_with_the_file(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(content([[1]] * 10)))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the folder of .*file/b\.json cannot be created \("):
        split_annotations(
            tmp_path / "all.json", tmp_path / "a.json", tmp_path / "file" / "b.json", share=0.8, seed=0, xyxy=False
        )
    assert not (tmp_path / "a.json").exists()


def test_classes_of_one_part_alone_are_named(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch, content([[1, 2], [1], [1], [1], [2]]))
    assert capsys.readouterr().err == ""
    parts = run(tmp_path, monkeypatch, content([[1, *range(10, 22)], *[[1]] * 3, [3]]), "--share", "0.6")
    lines = capsys.readouterr().err.splitlines()
    assert all(len(part["categories"]) == 14 for part in parts)
    (alone,) = [line for line in lines if "class 10" in line]
    assert "has objects of 1" in alone
    assert "class 19 and 2 more" in alone
    assert "class 20" not in alone
    of_three = 0 if any(row["category_id"] == 3 for row in parts[0]["annotations"]) else 1
    (named,) = [line for line in lines if "class 3" in line or "13 classes" in line]
    assert str(tmp_path / ("first.json", "second.json")[of_three]) in named


def test_each_class_of_several_images_is_in_both_parts_and_the_seed_decides():
    rng = np.random.default_rng(0)
    for seed in range(30):
        rare = [[10 + row // 2] for row in range(20)]  # ten classes of two images each
        classes = [set(map(int, rng.integers(0, 4, 2))) for _ in range(80)] + list(map(set, rare)) + [{99}, set()]
        first, second = draw_parts(classes, 80, seed)
        assert (first, second) == draw_parts(classes, 80, seed)
        assert len(first) == 80
        assert sorted(first + second) == list(range(len(classes)))
        in_first, in_second = (set[int]().union(*(classes[row] for row in part)) for part in (first, second))
        assert in_first ^ in_second == {99}


@pytest.mark.parametrize("lacking", [0, 1])
def test_one_image_of_a_class_that_a_part_lacks_is_exchanged_for_one_of_that_part(lacking: int):
    order = np.random.default_rng(5).permutation(20).tolist()
    drawn = [set(order[:12]), set(order[12:])]
    classes: list[set[int]] = [set() if row in drawn[lacking] else {1} for row in range(20)]
    parts = draw_parts(classes, 12, 5)
    assert [len(part) for part in parts] == [12, 8]
    assert [len(set(part) - before) for part, before in zip(parts, drawn, strict=True)] == [1, 1]


def test_images_are_exchanged_only_for_a_class_that_a_part_lacks():
    """Images are exchanged only for a class that a part lacks; if both parts have every class, the random parts
    stay."""
    classes = [{1, 2}] * 20
    order = np.random.default_rng(3).permutation(20).tolist()
    assert draw_parts(classes, 15, 3) == (sorted(order[:15]), sorted(order[15:]))
    assert draw_parts([{1}, {1}], 2, 0) == ([0, 1], [])
    assert draw_parts([], 0, 0) == ([], [])


@pytest.mark.parametrize(("num_images", "share", "sizes"), [(3, "0.6", [2, 1]), (100, "0.29", [29, 71])])
def test_the_share_of_the_first_part_is_rounded(num_images, share, sizes, tmp_path, monkeypatch):
    parts = run(tmp_path, monkeypatch, content([[1]] * num_images), "--share", share)
    assert [len(part["images"]) for part in parts] == sizes


def test_records_with_nan_are_copied_unchanged(tmp_path, monkeypatch):
    rows = content([[1]] * 10)
    rows["images"][3]["license"] = float("nan")
    parts = run(tmp_path, monkeypatch, rows)
    (copied,) = (row for part in parts for row in part["images"] if row["id"] == rows["images"][3]["id"])
    assert repr(copied) == repr(rows["images"][3])


def test_a_file_name_that_is_no_text_is_not_judged(tmp_path, monkeypatch):
    rows = content([[1]] * 10)
    rows["images"][3]["file_name"] = ["a.jpg"]
    assert sum(len(part["images"]) for part in run(tmp_path, monkeypatch, rows)) == 10
