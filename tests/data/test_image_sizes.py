"""Heights and widths that an annotation file lacks or has wrong are those of the image itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovd.data.annotations import load_annotations
from ovd.data.formats.options import FormatOptions
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError, DataReport, Finding

HEIGHT, WIDTH = 20, 50


def content_of(folder: Path, num_images: int) -> dict[str, Any]:
    """Write images wider than high, each with one box at its right border and one at its left, and return their
    annotations."""
    images, annotations = [], []
    for number in range(1, num_images + 1):
        path = folder / f"{number}.png"
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        images.append({"id": number, "file_name": path.name, "height": HEIGHT, "width": WIDTH})
        for place, box in enumerate(([35, 5, 15, 10], [1, 5, 9, 10])):
            annotations.append({"id": 2 * number + place, "image_id": number, "category_id": 1, "bbox": box})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "gull"}]}


def load(
    folder: Path,
    content: dict[str, Any],
    report: DataReport,
    images: Path | None = None,
    *,
    truth: bool = False,
    **options: Any,
) -> AnnotationIndex:
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return load_annotations(
        path, images or folder, format="coco", report=report, options=FormatOptions(**options), with_truth=truth
    )


def swap(row: dict[str, Any]) -> None:
    row["height"], row["width"] = row["width"], row["height"]


def test_missing_sizes_are_read_from_the_images(tmp_path):
    content = content_of(tmp_path, 4)
    expected = load(tmp_path, content, DataReport(), truth=True)
    del content["images"][0]["height"], content["images"][0]["width"], content["images"][1]["width"]
    content["images"][2].update(height=None)
    report = DataReport()
    index = load(tmp_path, content, report, truth=True)
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts() == {("F12", "repaired"): 1}
    assert report.first_records()[Finding("F12", "repaired")][0].endswith(
        "train.json: 3 images have no height and width; they are read from the images"
    )


def test_an_image_without_size_that_cannot_be_read_is_left_out_of_training_and_stops_an_evaluation(tmp_path):
    content = content_of(tmp_path, 4)
    del content["images"][1]["height"]
    (tmp_path / "2.png").write_bytes(b"no image")
    report = DataReport()
    index = load(tmp_path, content, report)
    assert index.image_ids.tolist() == [1, 3, 4]
    assert len(index.boxes.values) == 6
    assert report.num_skipped("F9") == 1
    with pytest.raises(DataError, match=r"2\.png: not a JPEG"):
        load(tmp_path, content, DataReport(), truth=True)


def test_five_that_cannot_be_read_are_few_of_many_images_though_many_of_those_without_a_size(tmp_path):
    content = content_of(tmp_path, 6)
    for row in content["images"][:5]:
        del row["height"]
        (tmp_path / row["file_name"]).write_bytes(b"no image")
    more = [{**content["images"][5], "id": number, "file_name": f"{number}.png"} for number in range(7, 502)]
    for row in more:
        (tmp_path / row["file_name"]).touch()
    with pytest.raises(DataError, match="5 of 500 skipped"):
        load(tmp_path, {**content, "images": content["images"] + more[:-1]}, DataReport())
    assert len(load(tmp_path, {**content, "images": content["images"] + more}, DataReport())) == 496


def test_without_a_folder_of_images_a_size_is_required(tmp_path):
    content = content_of(tmp_path, 1)
    del content["images"][0]["height"]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="images record 1: height is None"):
        load_annotations(path, None, format="coco", report=DataReport())


@pytest.mark.parametrize("truth", [False, True])
def test_the_image_decides_where_boxes_leave_the_record(tmp_path, truth: bool):
    content = content_of(tmp_path, 6)
    expected = load(tmp_path, content, DataReport(), truth=truth)
    swap(content["images"][2])
    content["images"][4].update(height=15, width=30)
    report = DataReport()
    index = load(tmp_path, content, report, truth=truth)
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts() == {("F12", "repaired"): 2}
    assert report.first_records()[Finding("F12", "repaired")] == [
        "image 3, 3.png: 20 x 50, the record says 50 x 20",
        "image 5, 5.png: 20 x 50, the record says 15 x 30",
    ]


def test_more_than_a_few_stop_and_a_check_sees_them_all(tmp_path):
    content = content_of(tmp_path, 6)
    for row in content["images"][:5]:
        swap(row)
    with pytest.raises(
        DataError,
        match=r"in 5 images, boxes reach outside the recorded height and width, .* swapped\? .*sizes_from_images",
    ):
        load(tmp_path, content, DataReport())
    report = DataReport(stops=False)
    index = load(tmp_path, content, report)
    assert report.counts()[Finding("F12", "repaired")] == 5
    assert np.unique(index.image_sizes, axis=0).tolist() == [[HEIGHT, WIDTH]]


@pytest.mark.parametrize("truth", [False, True])
def test_all_sizes_are_read_from_the_images_if_asked(tmp_path, truth: bool):
    """On request, all sizes are read from the images: some converters write a net's input size, 1024 x 1024, into every
    record, and no box leaves that."""
    content = content_of(tmp_path, 6)
    expected = load(tmp_path, content, DataReport(), truth=truth)
    for row in content["images"]:
        row.update(height=1024, width=1024)
    content["images"][3]["height"] = "unknown"
    report = DataReport()
    index = load(tmp_path, content, report, truth=truth, sizes_from_images=True)
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts() == {}


def test_images_that_are_shown_turned_and_annotated_as_stored_stay_so(tmp_path):
    content = content_of(tmp_path, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.png", exif=exif)
    expected = load(tmp_path, content, DataReport())
    index = load(tmp_path, content, DataReport(), sizes_from_images=True)
    assert index.image_sizes.tolist() == [[HEIGHT, WIDTH]] * 2
    assert index.fingerprint() == expected.fingerprint()
    content["images"][0].update(height=1024, width=1024)
    index = load(tmp_path, content, DataReport(), sizes_from_images=True)
    assert index.image_sizes.tolist() == [[WIDTH, HEIGHT], [HEIGHT, WIDTH]]


def test_too_many_images_of_another_size_name_the_option():
    report = DataReport(stops=False)
    for number in range(5):
        report.count_skipped("F12", f"{number}.png: height x width is 2 x 3, the annotation says 4 x 4")
    error = report.too_many(100)
    assert error is not None
    assert "sizes are wrong, set data.source.sizes_from_images=true (tools: --sizes-from-images)" in str(error)


@pytest.mark.parametrize("box", [[30, 5, 40, 10], [-4, 5, 49, 10], [30, -4, 15, 19]])
def test_boxes_that_leave_the_image_itself_say_nothing_of_the_record(box, tmp_path):
    content = content_of(tmp_path, 2)
    content["annotations"][0]["bbox"] = [30, 5, 40, 10]
    content["images"][1].update(height=10, width=25)
    content["annotations"][2]["bbox"] = box
    report = DataReport()
    index = load(tmp_path, content, report)
    assert ("F12", "repaired") not in report.counts()
    assert index.image_sizes.tolist() == [[HEIGHT, WIDTH], [10, 25]]


def test_an_image_that_is_annotated_as_stored_keeps_its_record(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer shows it 50 px high and 20 px wide
    content = content_of(tmp_path, 1)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.jpg", exif=exif)
    content["images"][0]["file_name"] = "1.jpg"
    content["annotations"][0]["bbox"] = [1, 5, 15, 17]  # leaves the record but fits into the shown image
    content["annotations"][1]["bbox"] = [1, 5, 9, 10]
    report = DataReport()
    index = load(tmp_path, content, report)
    assert index.image_sizes.tolist() == [[HEIGHT, WIDTH]]
    assert ("F12", "repaired") not in report.counts()
