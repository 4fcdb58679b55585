"""CVAT's own XML: shapes of images, tracks of a video, and refused files."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from imported_boxes import Found, imported_boxes
from PIL import Image

from ovd.data.report import DataError, DataReport, Finding

META = "<version>1.1</version><meta><task><id>1</id></task></meta>"


def imported(folder: Path, body: str, **options: Any) -> tuple[Found, DataReport]:
    text = f'<?xml version="1.0" encoding="utf-8"?><annotations>{META}{body}</annotations>'
    return imported_boxes(folder / "annotations.xml", text, folder / "images", "cvat", **options)


def image(name: str, shapes: str, size: str = 'width="90" height="60"') -> str:
    return f'<image id="0" name="{name}" {size}>{shapes}</image>'


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "sub/b.png", "frame_000000.png", "frame_000007.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60)).save(path)
    return tmp_path


def test_shapes_of_images(folder):
    shapes = (
        '<box label=" cat " occluded="0" xtl="10.5" ytl="20" xbr="30.5" ybr="50"><attribute name="x">1</attribute>'
        "</box>"
        '<polygon label="dog" points="5.0,6.5;25.0,8;15,30.5"/>'
        '<mask label="dog" rle="1, 2" left="3" top="4" width="20" height="10"/>'
        '<polyline label="dog" points="1,2;3,4"/><points label="dog" points="1,2"/><tag label="sunny"/>'
    )
    found, report = imported(folder, image("a.png", shapes) + image("sub/b.png", ""))
    assert found == {
        "a.png": [("cat", [10.5, 20, 20, 30]), ("dog", [5, 6.5, 20, 24]), ("dog", [3, 4, 20, 10])],
        "sub/b.png": [],
    }
    assert report.counts() == {("F4", "skipped"): 3}
    assert "image 0, a.png: <polyline> 'dog' has no box" in report.first_records()[Finding("F4", "skipped")][0]


@pytest.mark.parametrize("degrees", [0, 30, 90, 137.5, 300])
def test_boxes_around_turned_boxes_and_ellipses(folder, degrees):
    shapes = (
        f'<box label="cat" xtl="30" ytl="25" xbr="60" ybr="35" rotation="{degrees}"/>'
        f'<ellipse label="dog" cx="45" cy="30" rx="15" ry="5" rotation="{degrees}"/>'
    )
    found, _ = imported(folder, image("a.png", shapes))
    corners = cv2.boxPoints(((45, 30), (30, 10), degrees))
    expected = [*corners.min(axis=0), *np.ptp(corners, axis=0)]
    np.testing.assert_allclose(found["a.png"][0][1], expected, atol=0.01)
    around, angle = np.linspace(0, 2 * math.pi, 100_000), math.radians(degrees)
    x = 45 + 15 * np.cos(around) * math.cos(angle) - 5 * np.sin(around) * math.sin(angle)
    y = 30 + 15 * np.cos(around) * math.sin(angle) + 5 * np.sin(around) * math.cos(angle)
    np.testing.assert_allclose(found["a.png"][1][1], [x.min(), y.min(), np.ptp(x), np.ptp(y)], atol=0.01)


def test_tracks_are_objects_of_the_frames_they_are_seen_in(folder):
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}" keyframe="1" xtl="{frame}" ytl="2" xbr="30" ybr="40"/>'
        for frame, outside in ((0, 0), (7, 0), (9, 1))
    )
    Image.new("RGB", (90, 60)).save(folder / "images" / "000009.png")
    found, report = imported(folder, f'<track id="3" label="car">{boxes}</track>')
    assert found == {
        "frame_000000.png": [("car", [0, 2, 30, 38])],
        "frame_000007.png": [("car", [7, 2, 23, 38])],
        "000009.png": [],  # a frame without a track is background
    }
    assert report.counts() == {("F12", "repaired"): 1}  # sizes are read from the frames
    with pytest.raises(DataError, match=r"no image of frame 12, such as frame_000012\.jpg") as caught:
        imported(folder, '<track id="3" label="car"><box frame="12" xtl="1" ytl="2" xbr="30" ybr="40"/></track>')
    assert caught.value.code == "F8"


def test_frames_that_are_not_one_image_each_are_refused(folder):
    box = '<box frame="0" xtl="1" ytl="2" xbr="30" ybr="40"/>'
    tracks = "".join(f'<track id="{task}" label="car" task_id="{task}">{box}</track>' for task in (1, 2))
    with pytest.raises(
        DataError, match=r"track 1 and .*track 2 belong to two tasks.*export each task separately"
    ) as caught:
        imported(folder, tracks)
    assert caught.value.code == "F1"
    Image.new("RGB", (90, 60)).save(folder / "images" / "sub" / "frame_000000.jpg")
    with pytest.raises(DataError, match=r"frame 0 may be frame_000000\.png or sub/frame_000000\.jpg") as caught:
        imported(folder, f'<track id="1" label="car">{box}</track>')
    assert caught.value.code == "F2"


def test_images_by_their_base_names(folder):
    found, _ = imported(folder, image("upload/1/b.PNG", ""), by_base_name=True)
    assert found == {"sub/b.png": []}


BOX = '<box label="cat" xtl="1" ytl="2" xbr="30" ybr="40"/>'


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (image("a.png", BOX.replace('"30"', '"nan"')), "F6", "image 0, a.png: <box> 'cat': has .*'xbr': 'nan'"),
        (image("a.png", BOX.replace('xtl="1"', "")), "F6", "not four numbers under 1,000,000,000"),
        (image("a.png", BOX.replace('"30"', '"1e9"')), "F6", "not four numbers under 1,000,000,000"),
        (
            image("a.png", BOX.replace("box", "cuboid")),
            "F6",
            "<cuboid> 'cat': only boxes, polygons, ellipses and masks",
        ),
        (image("a.png", BOX.replace("/>", ' rotation="left"/>')), "F6", "rotation is 'left'"),
        (image("a.png", BOX.replace("cat", " ")), "F1", "<box> has no label"),
        (image("a.png", '<polygon label="cat" points="1,2;3"/>'), "F6", "points are '1,2;3', not those of a polygon"),
        (image("a.png", '<polygon label="cat" points="1,2;3,4"/>'), "F6", "not those of a polygon"),
        (image("a.png", BOX) + image("a.png", BOX), "F2", "are both of the image a.png"),
        (image(" ", BOX), "F1", "image 0 has no name"),
        (image("a.png", BOX, 'width="x" height="60"'), "F1", "height and width are 60 and x"),
        (f'<track id="3" label="car">{BOX}</track>', "F1", "track 3: <box> has the frame None"),
        ('<track id="3" label="car">' + BOX.replace("<box", '<box frame="-1"') + "</track>", "F1", "the frame '-1'"),
    ],
)
def test_faults_are_named(folder, body, code, message):
    with pytest.raises(DataError, match=message) as caught:
        imported(folder, body)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object/></annotation>", "the root element is <annotation>, not CVAT's"),
        ("<annotations><image", "invalid XML at byte"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotations/>', "has a DOCTYPE"),
    ],
)
def test_other_files_are_refused(folder, text, message):
    with pytest.raises(DataError, match=message) as caught:
        imported_boxes(folder / "other.xml", text, folder / "images", "cvat")
    assert caught.value.code == "F1"
