"""JSON of the VGG Image Annotator: shapes, the choice of the label attribute, and refused files."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from imported_boxes import Found, imported_boxes
from PIL import Image

from ovd.data.report import DataError, DataReport, Finding

RECT = {"name": "rect", "x": 10, "y": 20.5, "width": 20, "height": 30}
POLYGON = {"name": "polygon", "all_points_x": [5, 25, 15], "all_points_y": [6.5, 8, 30.5]}


def region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def record(name: str, *regions: Any) -> dict[str, Any]:
    return {f"{name}123": {"filename": name, "size": 123, "regions": list(regions), "file_attributes": {}}}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "sub/b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60)).save(path)
    return tmp_path


def imported(folder: Path, content: Any, **options: Any) -> tuple[Found, DataReport]:
    return imported_boxes(folder / "via.json", json.dumps(content), folder, "via", **options)


def test_shapes_of_images(folder):
    regions = [region(RECT, kind=" cat "), region(POLYGON, kind="dog")]
    regions += [region({"name": "point", "cx": 3, "cy": 4}, kind="dog")]
    regions += [region(POLYGON | {"name": "polyline"}, kind="dog")]
    found, report = imported(folder, record("a.png", *regions) | record("sub\\b.png"))
    assert found == {"a.png": [("cat", [10, 20.5, 20, 30]), ("dog", [5, 6.5, 20, 24])], "sub/b.png": []}
    assert report.counts() == {("F4", "skipped"): 2, ("F12", "repaired"): 1}  # sizes are read from the images
    assert "image 'a.png123', region 3: a polyline has no box" in report.first_records()[Finding("F4", "skipped")][1]


@pytest.mark.parametrize("theta", [0, 0.4, 1.9])
def test_boxes_around_circles_and_ellipses(folder, theta):
    circle = {"name": "circle", "cx": 40, "cy": 30, "r": 12.5}
    ellipse = {"name": "ellipse", "cx": 45, "cy": 30, "rx": 20, "ry": 8}
    turned = ellipse | ({"theta": theta} if theta else {})
    found, _ = imported(folder, record("a.png", region(circle, kind="cat"), region(turned, kind="cat")))
    assert found["a.png"][0] == ("cat", [27.5, 17.5, 25, 25])
    points = np.array(cv2.ellipse2Poly((4500, 3000), (2000, 800), round(np.degrees(theta)), 0, 360, 1)) / 100
    expected = [*points.min(axis=0), *np.ptp(points, axis=0)]
    np.testing.assert_allclose(found["a.png"][1][1], expected, atol=0.3)


def test_a_saved_project_and_the_form_of_version_1_are_the_same(folder):
    regions = [region(RECT, kind="cat"), region(POLYGON, kind="dog")]
    content = record("a.png", *regions)
    plain, _ = imported(folder, content)
    project, _ = imported(folder, {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}})
    content["a.png123"]["regions"] = {str(number): region for number, region in enumerate(regions)}
    first, _ = imported(folder, content)
    assert plain == project == first != {}


@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        ([{"kind": "cat"}, {"kind": "dog"}], {}),
        ([{"kind": {"cat": True, "dog": False}}, {"kind": {"dog": True}}], {}),  # checkboxes
        ([{"kind": "cat", "size": ""}, {"kind": "dog", "size": ""}], {}),  # the other attribute is empty
        ([{"animal": "cat", "tier": "cat"}, {"animal": "dog", "tier": "dog"}], {}),  # both attributes agree
        ([{"kind": "cat", "age": "old"}, {"kind": "dog", "age": "old"}], {"attribute": "kind"}),
        ([{"kind": "cat"}, {"kind": "dog", "age": 3}], {"attribute": "kind"}),
    ],
)
def test_the_attribute_that_names(folder, attributes, options):
    content = record("a.png", *(region(RECT, **given) for given in attributes))
    found, _ = imported(folder, content, **options)
    assert [label for label, _ in found["a.png"]] == ["cat", "dog"]


def test_no_attribute_is_chosen_that_some_regions_lack(folder):
    names = folder / "names.txt"
    names.write_text("thing\n")
    content = record("a.png", region(RECT, type="cat"), region(RECT, type="cat"), region(RECT, kind="dog"))
    for options in ({}, {"class_names": names}):
        with pytest.raises(DataError, match=r"several attributes, type \(cat\); kind \(dog\): say with --attribute"):
            imported(folder, content, **options)


def test_one_name_for_regions_without_attributes(folder):
    names = folder / "names.txt"
    names.write_text("balloon\n")
    content = record("a.png", region(RECT), region(POLYGON)) | record("sub/b.png")
    found, _ = imported(folder, content, class_names=names)
    assert [label for label, _ in found["a.png"]] == ["balloon", "balloon"]
    with pytest.raises(DataError, match=r"region 0: has no attribute with a class name; if they all have one class"):
        imported(folder, content)
    found, _ = imported(folder, record("a.png", region(RECT, kind="kite"), region(POLYGON)), class_names=names)
    assert [label for label, _ in found["a.png"]] == ["kite", "balloon"]
    names.write_text("balloon\nkite\n")
    with pytest.raises(ValueError, match="2 names; regions without a class name can have only one"):
        imported(folder, content, class_names=names)


@pytest.mark.parametrize(("end", "is_outline"), [([10, 10], True), ([10, 16], True), ([10, 21], False)])
def test_lines_are_outlines_where_their_ends_meet(folder, end, is_outline):
    """A polyline, here 30 px wide and 40 px high, is read as an outline if its ends meet, otherwise skipped."""
    points = [[10, 10], [40, 10], [40, 50], [20, 50], end]
    x, y = map(list, zip(*points, strict=True))
    line = {"name": "polyline", "all_points_x": x, "all_points_y": y}
    found, report = imported(folder, record("a.png", region(line, kind="cat")))
    assert found["a.png"] == ([("cat", [10, 10, 30, 40])] if is_outline else [])
    assert report.num_skipped("F4") == (not is_outline)
    assert (("F6", "repaired") in report.counts()) == is_outline


def test_a_set_without_regions(folder):
    found, _ = imported(folder, record("a.png"))
    assert found == {"a.png": []}


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (record("a.png", region(RECT | {"x": "1"}, kind="cat")), "F6", "region 0: has .*'x': '1'.*not numbers under"),
        (record("a.png", region(RECT | {"x": 10**400}, kind="cat")), "F6", "not numbers under 1,000,000,000"),
        (record("a.png", region(RECT | {"x": 1e9}, kind="cat")), "F6", "not numbers under 1,000,000,000"),
        (record("a.png", region(RECT | {"x": float("nan")}, kind="cat")), "F6", "not numbers under 1,000,000,000"),
        (record("a.png", region({"name": "rect", "x": 1}, kind="cat")), "F6", "not numbers under 1,000,000,000"),
        (record("a.png", region(POLYGON | {"all_points_x": [1, 2]}, kind="cat")), "F6", "not those of a polygon"),
        (
            record("a.png", region({"name": "polygon", "all_points_x": [1, 9], "all_points_y": [2, 8]}, kind="cat")),
            "F6",
            "not those of a polygon",
        ),
        (record("a.png", region({"name": "star"}, kind="cat")), "F6", "the shape is 'star'; only rectangles, polygons"),
        (record("a.png", {"region_attributes": {}}), "F1", "region 0 has no shape_attributes"),
        (record("a.png", region(RECT, kind="cat"), region(RECT)), "F1", "region 1: has no 'kind' with a class name"),
        (
            record("a.png", region(RECT, kind="cat", age="old"), region(RECT, kind="dog", age="old")),
            "F1",
            r"several attributes, kind \(cat, dog\); age \(old\): say with --attribute",
        ),
        (record(" ", region(RECT, kind="cat")), "F1", "has the filename ' '"),
        ({"x": {"filename": "a.png", "regions": 3}}, "F1", "its regions are a int, not a list"),
        (record("a.png") | record("./a.png"), "F2", "are both of the image a.png"),
        ({"images": [], "annotations": []}, "F1", "no records of images"),
        ({"project": {}, "file": {}, "metadata": {}, "view": {}}, "F1", "projects of VIA 3 are not supported"),
        ({}, "F1", "no records of images"),
        ([], "F1", "contains a list, not an object"),
    ],
)
def test_faults_are_named(folder, content, code, message):
    with pytest.raises(DataError, match=message) as caught:
        imported(folder, content)
    assert caught.value.code == code


def test_an_attribute_that_no_region_has_is_refused(folder):
    with pytest.raises(DataError, match=r"kind \(cat\): none is called 'type'"):
        imported(folder, record("a.png", region(RECT, kind="cat")), attribute="type")
