"""CSV files of boxes, one row per object: columns in any order, RetinaNet's form without a header, and refused
files."""

from pathlib import Path
from typing import Any

import pytest
from imported_boxes import Found, imported_boxes
from PIL import Image

from ovd.data.report import DataError, DataReport, Finding

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"
EXPECTED = {"a.png": [("cat", [10, 20, 20, 30]), ("dog", [1.5, 2, 8, 9])], "b.png": [("cat", [0, 0, 90, 60])]}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (90, 60)).save(tmp_path / f"{name}.png")
    return tmp_path


def imported(folder: Path, text: str, images: Path | None = None, **options: Any) -> tuple[Found, DataReport]:
    return imported_boxes(folder / "boxes.csv", text, images, "csv", **options)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\na.png,90,60,cat,10,20,30,50\nb.png,90,60,cat,0,0,90,60\na.png,90,60,dog,1.5,2,9.5,11\n",
        "image_path,x1,y1,x2,y2,label\na.png,10,20,30,50,cat\na.png,1.5,2,9.5,11,dog\nb.png,0,0,90,60,cat",
        "Class,XMax,XMin,YMin,YMax,File Name\ncat,30,10,20,50,a.png\n\ndog,9.5,1.5,2,11,a.png\ncat,90,0,0,60,b.png",
        "path,filename,name,class,x1,xmin,ymin,xmax,ymax\nx/a.png,a.png,m1,cat,0,10,20,30,50\n"
        "x/a.png,a.png,m1,dog,0,1.5,2,9.5,11\nx/b.png,b.png,m1,cat,1,0,0,90,60",  # the usual of two names of a column
        "a.png,10,20,30,50,cat\r\na.png,1.5,2,9.5,11,dog\r\nb.png,0,0,90,60,cat\r\n",
    ],
)
def test_columns_as_tools_name_them(folder, text):
    found, report = imported(folder, text)
    assert found == EXPECTED
    assert set(report.counts()) <= {("F12", "repaired")}  # sizes without a column are read from the images


def test_rows_of_images_without_objects_and_images_without_a_row(folder):
    found, report = imported(folder, "a.png,,,,,\n", folder)
    assert found == {"a.png": []}
    assert report.counts()[Finding("F8", "noticed")] == 1
    assert "1 of 2 images in" in report.first_records()[Finding("F8", "noticed")][0]
    with pytest.raises(DataError, match="has no row with an image"):
        imported(folder, HEADER)


def test_paths_of_another_machine_by_their_base_names(folder):
    text = f"{HEADER}\nC:\\photos\\a.png,90,60,cat,10,20,30,50\n"
    with pytest.raises(DataError, match="by_base_name=true"):
        imported(folder, text)
    found, report = imported(folder, text, folder, by_base_name=True)
    assert found == {"a.png": [("cat", [10, 20, 20, 30])]}
    assert report.counts()[Finding("F8", "noticed")] == 1  # b.png has no row


def test_rows_that_contradict_one_another_in_the_size_and_names_spelled_in_two_ways(folder):
    text = f"{HEADER}\na.png,90,60,cat,10,20,30,50\n./a.png,80,60,dog,1.5,2,9.5,11\nb.png,90,60,cat,0,0,90,60"
    found, report = imported(folder, text)
    assert found == EXPECTED
    assert report.counts() == {("F12", "repaired"): 1}  # the image itself decides


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (HEADER + 4 * "\na.png,90,60,cat,0.1,0.2,0.3,0.5", "F6", "all coordinates are from 0 to 1"),
        (f"{HEADER}\na.png,wide,60,cat,10,20,30,50", "F1", "line 2: height and width are not numbers of pixels"),
        ("filename,class,xmin,ymin,xmax\na.png,cat,1,2,3", "F1", "has no column for these: bottom: ymax, y2, bottom"),
        (f"{HEADER}\na.png,90,60,cat,10,20,30", "F1", "line 2 has 7 values, not 8"),
        (f"{HEADER}\na.png,90,60,cat,10,20,thirty,50", "F6", "line 2: .* are not four numbers under 1,000,000,000"),
        (f"{HEADER}\na.png,90,60,cat,10,20,1e9,50", "F6", "not four numbers under 1,000,000,000"),
        (f"{HEADER}\na.png,90,60,cat,10,20,,50", "F6", "not four numbers under 1,000,000,000"),
        (f"{HEADER}\na.png,90,60,,10,20,30,50", "F1", "line 2: the class has no name"),
        (f"{HEADER}\n,90,60,cat,10,20,30,50", "F1", "line 2: has no image name"),
        (f'{HEADER}\n"a.png,90', "F1", "is not valid CSV"),
    ],
)
def test_faults_are_named(folder, text, code, message):
    with pytest.raises(DataError, match=message) as caught:
        imported(folder, text)
    assert caught.value.code == code
