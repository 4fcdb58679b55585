"""Annotation files that once failed with errors of other libraries: each reader names the file."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from test_tools import run_tool

from ovd.data.annotations import load_annotations, load_truth
from ovd.data.report import DataError, DataReport
from ovd.evaluation.results_file import load_results

GOOD: dict[str, Any] = {
    "images": [
        {"id": row, "file_name": f"{row}.png", "height": 30, "width": 40, "neg_category_ids": [],
         "not_exhaustive_category_ids": []}
        for row in (1, 2)
    ],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "area": 100}],
    "categories": [{"id": 1, "name": "cat", "synonyms": ["cat"], "frequency": "f"}],
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    float("nan"),
    True,
    [1],
    [None],
    [["x"]],
    2**63,
    -(2**63) - 1,
    10**30,
    1e30,
    "\ud800",
)
BROKEN_ROWS: tuple[Any, ...] = (None, {}, [None], [{}], [])


def odd_files() -> list[bytes]:
    contents: list[Any] = [None, [], {}, 7]
    for name, rows in GOOD.items():
        contents += [{**GOOD, name: rows_instead} for rows_instead in BROKEN_ROWS]
        for field in rows[0]:
            for value in ODD:
                content = copy.deepcopy(GOOD)
                content[name][0][field] = value
                contents.append(content)
    text = json.dumps(GOOD)
    return [
        *(json.dumps(content).encode() for content in contents),
        *(b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        *(b"", b"\xff", text.encode("utf-16")),
        text.replace('"area": 100', f'"segmentation": {"[" * 100_000 + "]" * 100_000}').encode(),
        text.replace('"height": 30', f'"height": {"9" * 5000}').encode(),
    ]  # fmt: skip


def test_every_path_reads_an_odd_file_or_names_it(tmp_path):
    path = tmp_path / "odd.json"
    num_refused = 0
    for content in odd_files():
        path.write_bytes(content)
        for format in ("coco", "lvis"):
            for read in (
                lambda format: load_annotations(path, tmp_path, format=format, report=DataReport(stops=False)),
                lambda format: load_truth(path, format=format),
            ):
                try:
                    read(format)
                except DataError as error:
                    assert str(error).startswith(str(path))  # noqa: PT017
                    num_refused += 1
    assert num_refused > 300


@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"{}", b"[1]", b'[{"image_id": ' + b"9" * 5000 + b"}]"])
def test_odd_results_files_are_named(tmp_path, content: bytes):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json: "):
        load_results(path)


def test_a_results_file_may_have_a_byte_order_mark(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b'\xef\xbb\xbf[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1e-3}]')
    assert load_results(path).image_ids.tolist() == [1]


def split(path: Path, folder: Path, expect: int = 0) -> str:
    arguments = ("--share", "0.5", "--first", folder / "1.json", "--second", folder / "2.json")
    return run_tool("tools/split_annotations.py", path, *arguments, expect=expect).stderr


def test_splitting_checks_the_file_and_keeps_every_annotation_whatever_the_type_of_its_ids(tmp_path):
    path = tmp_path / "a.json"
    content = copy.deepcopy(GOOD)
    content["annotations"].append({"id": 2, "image_id": "2", "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25})
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    split(path, tmp_path)
    parts = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2)]
    assert [len(part["annotations"]) for part in parts] == [1, 1]
    content["annotations"][0]["image_id"] = 9
    path.write_text(json.dumps(content))
    assert "error[F3]" in split(path, tmp_path, expect=2)
