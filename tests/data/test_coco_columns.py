"""The fast reader of JSON annotations gives the result of the careful one for every file that it accepts."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovd.data.formats.coco_columns import read_columns
from ovd.data.formats.coco_records import read_records
from ovd.data.formats.options import FormatOptions
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.report import DataReport

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 7, -3, 1.0, 2.5, 1e300, 2**53 + 1, 2**63 - 1, 2**63, 10**30, "", "1", "r", "x/y.jpg",
    [], [1], [1, 2], [2.5], ["a"], [1, 2, 3, 4], [0.5, 0, 0, -2], [1, 2, 3, 1e9], [1, 2, 3, True], {}, {"id": 1},
)  # fmt: skip


def request_of(path: Path, *, index: bool, truth: bool) -> ReadRequest:
    return ReadRequest(path, Path("images"), FormatOptions(), index=index, truth=truth)


def good_file() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    categories = [
        {"id": row, "name": f"class {row}", "synonyms": [f"class {row}"], "frequency": "rcf"[row % 3], "image_count": 3}
        for row in (7, 2, 5)
    ]
    images = [
        {"id": row, "height": 60, "width": 80, "file_name": f"{row}.jpg", "coco_url": f"http://x/train2017/{row}.jpg",
         "neg_category_ids": [7], "not_exhaustive_category_ids": [2, 5]}
        for row in (9, 4, 12)
    ]  # fmt: skip
    annotations = [
        {"id": row, "image_id": (9, 4, 12)[row % 3], "category_id": (7, 2, 5)[row % 2], "area": 25, "iscrowd": row % 2,
         "bbox": rng.uniform(1, 20, 4).round(2).tolist(), "segmentation": [[1, 2, 3, 4, 5, 6.5]]}
        for row in (1, 2, 3, 4, 8)
    ]  # fmt: skip
    return {"info": {"year": 1}, "images": images, "annotations": annotations, "categories": categories}


def assert_equal(one: AnnotationTable, other: AnnotationTable) -> None:
    for name, value in vars(one).items():
        expected = getattr(other, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype
        elif name == "name_of_object":
            rows = range(len(one.boxes_xywh))
            assert list(map(value, rows)) == list(map(expected, rows))
        else:
            assert value == expected, name


@pytest.mark.parametrize("federated", [True, False])
@pytest.mark.parametrize(("index", "truth"), [(True, False), (False, True), (True, True)])
def test_a_file_as_it_should_be_is_read_alike(federated: bool, index: bool, truth: bool, tmp_path):
    request = request_of(tmp_path / "a.json", index=index, truth=truth)
    empty: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for file in (good_file(), empty):
        content = json.dumps(file).encode()
        table = read_columns(request, content, federated=federated)
        assert table is not None
        assert_equal(table, read_records(request, content, DataReport(), federated=federated))


def assert_read_alike(path: Path, *, federated: bool) -> None:
    request = request_of(path, index=True, truth=True)
    table = read_columns(request, path.read_bytes(), federated=federated)
    assert table is not None
    assert_equal(table, read_records(request, path.read_bytes(), DataReport(), federated=federated))


@pytest.mark.parametrize(
    ("name", "federated"), [("lvis_val_100.json", True), ("coco_instances_val2014_100.json", False)]
)
def test_real_files_are_read_alike(shared_data, name: str, federated: bool):
    assert_read_alike(shared_data / name, federated=federated)


def test_the_worlds_files_are_read_alike(miniature_world):
    assert_read_alike(miniature_world / "annotations" / "lvis_val.json", federated=True)
    assert_read_alike(miniature_world / "annotations" / "lvis_train.json", federated=True)


def edited(file: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Copy the content with one to three values replaced, removed, or swapped for those of another record."""
    file = copy.deepcopy(file)
    for _ in range(int(rng.integers(1, 4))):
        rows = file[("images", "annotations", "categories")[rng.integers(3)]]
        row = rows[rng.integers(len(rows))]
        if not row:
            continue
        key = sorted(row)[rng.integers(len(row))]
        match rng.integers(4):
            case 0:
                del row[key]
            case 1:
                row[key] = copy.deepcopy(rows[rng.integers(len(rows))].get(key))
            case 2 if isinstance(row[key], list) and row[key]:
                row[key][rng.integers(len(row[key]))] = ODD[rng.integers(len(ODD))]
            case _:
                row[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return file


@pytest.mark.parametrize("federated", [True, False])
@pytest.mark.parametrize(("index", "truth"), [(True, False), (False, True)])
def test_whatever_is_edited_it_reads_the_same_or_leaves_the_file_to_the_careful_reader(
    federated, index, truth, tmp_path
):
    request, file, rng = (
        request_of(tmp_path / "a.json", index=index, truth=truth),
        good_file(),
        np.random.default_rng(1),
    )
    num_read = 0
    for _ in range(1000):
        content = json.dumps(edited(file, rng)).encode()
        table = read_columns(request, content, federated=federated)
        if table is not None:
            num_read += 1
            assert_equal(table, read_records(request, content, DataReport(), federated=federated))
    assert 50 < num_read < 950


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'{"images": []}', b'\xff{"images": []}', b"[" * 200_000, b'{"images": [NaN]}'),
        b'{"info": "\xff", "images": [], "annotations": [], "categories": []}',
    ],
    ids=lambda content: content[:12].decode(errors="replace"),
)
def test_what_is_no_annotation_file_is_left_to_the_careful_reader(content: bytes, tmp_path):
    request = request_of(tmp_path / "a.json", index=True, truth=True)
    assert read_columns(request, content, federated=False) is None
