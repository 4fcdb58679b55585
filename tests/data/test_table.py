"""What everything after a reader relies on is checked where the reader gives its table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovd.data.category import Category
from ovd.data.formats.table import AnnotationTable, available_part
from ovd.data.report import DataReport

TABLE = AnnotationTable(
    path=Path("boxes.lines"),
    categories=(Category(1, "cat"), Category(4, "dog")),
    image_ids=np.array([7, 8]),
    image_of_object=np.array([0, 1, 1]),
    class_of_object=np.array([0, 1, 0]),
    boxes_xywh=np.array([[1.0, 2, 3, 4]] * 3),
    is_crowd=np.zeros(3, bool),
    name_of_object=lambda row: f"line {row + 1}",
    image_files=("a.jpg", "b.jpg"),
    image_sizes=np.array([[20, 20], [20, 20]]),
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"categories": TABLE.categories[::-1]}, r"boxes\.lines: the table's category ids do not ascend"),
        ({"categories": (TABLE.categories[0],) * 2}, "do not ascend, each once"),
        ({"image_of_object": np.array([0, 1, 2])}, "has no image for each of its objects"),
        ({"class_of_object": np.array([0, -1, 0])}, "has no class for each of its objects"),
        ({"boxes_xywh": np.array([[1.0, 2, 3, 4], [0, 0, np.nan, 5], [1, 2, 3, 4]])}, "^line 2: .* not finite"),
    ],
)
def test_a_table_that_a_reader_made_wrong_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TABLE, **changed)


def test_boxes_of_images_that_are_not_available_are_counted() -> None:
    report = DataReport()
    found = available_part(replace(TABLE, is_available=np.array([True, False])), report)
    assert found.image_ids.tolist() == [7]
    assert len(found.boxes_xywh) == 1
    assert (report.num_used("box"), report.num_seen("box")) == (0, 2)
    assert available_part(TABLE, report) is TABLE
