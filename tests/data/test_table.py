"""The checks that a reader's table passes before anything else uses it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovd.data.category import Category
from ovd.data.formats.box_form import check_no_shares, notice_doubles
from ovd.data.formats.table import AnnotationTable, FederatedLabels, available_part, clean_boxes, index_of, truth_of
from ovd.data.report import DataError, DataReport

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


def test_objects_are_the_same_by_image_class_and_box_and_images_by_their_file() -> None:
    def num_noticed(**changes: Any) -> int:
        report = DataReport()
        notice_doubles(replace(TABLE, **changes), report)
        return sum(report.counts().values())

    assert num_noticed() == 0  # two objects have one image and one box, but two classes
    one_class = np.array([0, 1, 1])
    assert num_noticed(class_of_object=one_class) == 1
    zeros = np.array([[1.0, 2, 3, 4], [0.0, 2, 3, 4], [-0.0, 2, 3, 4]])
    assert num_noticed(class_of_object=one_class, boxes_xywh=zeros) == 1
    assert num_noticed(image_files=("a.jpg", "./a.jpg")) == 1
    assert num_noticed(image_files=("a/b.jpg", "a//b.jpg")) == 1


def test_boxes_of_an_image_of_one_pixel_are_no_shares_of_its_sides() -> None:
    nothing = np.zeros(4, np.int64)
    table = replace(
        TABLE, image_of_object=nothing, class_of_object=nothing, boxes_xywh=np.array([[0.0, 0, 1, 1]] * 4),
        is_crowd=np.zeros(4, bool),
    )  # fmt: skip
    check_no_shares(replace(table, image_sizes=np.ones((2, 2), np.int64)))
    with pytest.raises(DataError, match="all coordinates are from 0 to 1"):
        check_no_shares(table)


def test_boxes_of_images_that_are_not_available_are_counted() -> None:
    report = DataReport()
    found = available_part(replace(TABLE, is_available=np.array([True, False])), report)
    assert found.image_ids.tolist() == [7]
    assert len(found.boxes_xywh) == 1
    assert (report.num_used("box"), report.num_seen("box")) == (0, 2)
    assert available_part(TABLE, report) is TABLE


@pytest.mark.parametrize(
    ("box", "clean", "counts"),
    [
        ([1, 2, 1, 4], [1, 2, 2, 6], {}),
        ([1, 2, 2.3 - 1.3, 4], [1, 2, 2, 6], {}),
        ([1, 2, 0.998, 4], None, {("F4", "skipped"): 1}),
        ([40, 2, 5, 4], None, {("F5", "skipped"): 1}),
        ([1, -4, 5, 4], None, {("F5", "skipped"): 1}),
        ([39.5, 2, 5, 4], None, {("F4", "skipped"): 1}),
        ([39, 2, 1.0005, 4], [39, 2, 40, 6], {}),
        ([39.0005, 2, 5, 4], [39.0005, 2, 40, 6], {("F5", "repaired"): 1}),
        ([30, 15, 20, 20], [30, 15, 40, 20], {("F5", "repaired"): 1}),
    ],
)
def test_boxes_at_the_border_of_an_image_and_of_a_pixel(box, clean, counts) -> None:
    """Boxes that end near the border of an image (here 20 x 40 pixels) or are about a pixel wide are kept, clamped or
    skipped; a whole box before them is kept."""
    table = replace(
        TABLE, image_of_object=TABLE.image_of_object[:2], class_of_object=TABLE.class_of_object[:2],
        boxes_xywh=np.array([[1.0, 2, 3, 4], box]), is_crowd=TABLE.is_crowd[:2],
    )  # fmt: skip
    report = DataReport()
    boxes, is_kept = clean_boxes(table, np.array([[20, 40]] * 2), report)
    assert is_kept.tolist() == [True, clean is not None]
    np.testing.assert_allclose(boxes[is_kept], [[1, 2, 4, 6], *([] if clean is None else [clean])], atol=1e-5)
    assert report.counts() == counts
    assert (report.num_used("box"), report.num_seen("box")) == (is_kept.sum(), 2)


def test_crowd_regions_are_cleaned_as_boxes_are() -> None:
    boxes = np.array([[1.0, 2, 3, 4], [1, 2, 0.5, 4], [15, 2, 30, 4]])
    table = replace(TABLE, boxes_xywh=boxes, is_crowd=np.array([False, True, True]))
    index = index_of(table, "coco", DataReport(stops=False))
    assert index.boxes.values.tolist() == [[1, 2, 4, 6]]
    assert index.crowd_boxes.values.tolist() == [[15, 2, 20, 6]]
    assert index.crowd_boxes.offsets.tolist() == [0, 0, 1]


@pytest.mark.parametrize("is_federated", [True, False])
def test_an_index_counts_images_of_a_class_without_crowds_and_has_frequencies_of_lvis_alone(is_federated: bool) -> None:
    """Images are counted where the file does not say how many there are; the second object here is a crowd region."""
    categories = (Category(1, "cat", frequency="f"), Category(4, "dog", frequency="r"), Category(5, "owl", (), "c", 9))
    table = replace(
        TABLE, categories=categories, is_crowd=np.array([False, True, False]),
        federated=FederatedLabels(((), ()), ((), ())) if is_federated else None,
    )  # fmt: skip
    found = index_of(table, "lvis" if is_federated else "coco", DataReport()).categories
    assert [category.image_count for category in found] == [2, 0, 9]
    assert [category.frequency for category in found] == (["f", "r", "c"] if is_federated else [None] * 3)


def test_the_images_that_are_available_keep_their_objects_names_and_labels() -> None:
    labels = FederatedLabels(((4,), ()), ((), (1,)))
    table = replace(TABLE, areas_px=np.array([1.0, 2, 3]), federated=labels, is_available=np.array([False, True]))
    found = available_part(table, DataReport())
    assert [found.name_of_object(row) for row in range(2)] == ["line 2", "line 3"]
    assert found.image_of_object.tolist() == [0, 0]
    assert found.class_of_object.tolist() == [1, 0]
    assert isinstance(found.areas_px, np.ndarray)
    assert found.areas_px.tolist() == [2, 3]
    assert found.federated == FederatedLabels(((),), ((1,),))


@pytest.mark.parametrize("is_federated", [True, False])
def test_a_federated_truth_has_neither_crowds_nor_boxes_without_area(is_federated: bool) -> None:
    labels = FederatedLabels(((4,), ()), ((), (1,)))
    table = replace(
        TABLE, image_ids=np.array([8, 7]), areas_px=np.array([12.0, 0, 5]), is_crowd=np.array([True, False, False]),
        federated=labels if is_federated else None,
    )  # fmt: skip
    truth = truth_of(table)
    assert [(image.id, image.negative_category_ids) for image in truth.images] == [(7, ()), (8, (4,) * is_federated)]
    assert truth.areas_px.tolist() == ([12, 5] if is_federated else [12, 0, 5])
    assert truth.crowd.tolist() == ([False, False] if is_federated else [True, False, False])
    assert truth.image_ids.tolist() == ([8, 7] if is_federated else [8, 7, 7])
    assert truth.category_ids.tolist() == ([1, 1] if is_federated else [1, 4, 1])
    assert truth.num_without_area == (1 if is_federated else 0)
    counts = {category.name: category.image_count for category in truth.categories}
    assert counts == ({"cat": 2, "dog": 0} if is_federated else {"cat": 1, "dog": 1})
