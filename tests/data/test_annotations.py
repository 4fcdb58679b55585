"""COCO's and LVIS's JSON: how records are read, which faults are repaired and counted, and which stop with their
place."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.data.annotations import load_annotations, load_truth
from ovd.data.formats.options import FormatOptions
from ovd.data.index import AnnotationIndex, Ragged
from ovd.data.report import DataError, DataReport, Finding
from ovd.data.truth import Truth


def lvis_content() -> dict:
    """Make LVIS content of three images (the second non-square without objects) with unordered category ids with
    gaps."""
    labels: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    url = "http://images.cocodataset.org"
    return {
        "images": [
            {"id": 30, "height": 100, "width": 100, "coco_url": f"{url}/val2017/000030.jpg", **labels},
            {"id": 10, "height": 50, "width": 200, "coco_url": f"{url}/train2017/000010.jpg", **labels},
            {
                "id": 20,
                "height": 100,
                "width": 100,
                "coco_url": f"{url}/val2017/000020.jpg",
                "neg_category_ids": [9],
                "not_exhaustive_category_ids": [2, 5],
            },
        ],
        "categories": [
            {"id": 9, "name": "yak", "synonyms": ["yak", "grunting_ox"], "frequency": "r", "image_count": 7},
            {"id": 2, "name": "cat", "synonyms": ["cat"], "frequency": "f"},
            {"id": 5, "name": "dog", "synonyms": ["dog"], "frequency": "c"},
        ],
        "annotations": [
            {"id": 1, "image_id": 20, "category_id": 2, "bbox": [10, 20, 30, 40]},
            {"id": 2, "image_id": 30, "category_id": 9, "bbox": [0.5, 0.25, 1, 99.75]},
            {"id": 3, "image_id": 20, "category_id": 2, "bbox": [1, 2, 3, 4]},
            {"id": 4, "image_id": 20, "category_id": 5, "bbox": [0, 0, 100, 100]},
        ],
    }


def load(
    tmp_path: Path, content: dict, format: Literal["lvis", "coco"] = "lvis", images: Path | None = Path("root")
) -> tuple[AnnotationIndex, DataReport]:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    report = DataReport()
    return load_annotations(path, images, format=format, report=report), report


def test_lvis_records(tmp_path):
    index, report = load(tmp_path, lvis_content())
    assert len(index) == 3
    assert [(c.id, c.name, c.synonyms, c.frequency, c.image_count) for c in index.categories] == [
        (2, "cat", ("cat",), "f", 1),
        (5, "dog", ("dog",), "c", 1),
        (9, "yak", ("yak", "grunting_ox"), "r", 7),
    ]
    first, empty, last = (index.record(row) for row in range(3))
    assert (first.id, first.path, first.height, first.width) == (30, Path("root/val2017/000030.jpg"), 100, 100)
    assert first.labels.boxes.tolist() == [[0.5, 0.25, 1.5, 100]]
    assert first.labels.classes.tolist() == [2]
    assert (empty.path, empty.height, empty.width) == (Path("root/train2017/000010.jpg"), 50, 200)
    assert empty.labels.boxes.shape == empty.labels.crowd_boxes.shape == (0, 4)
    assert last.labels.boxes.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6], [0, 0, 100, 100]]
    assert last.labels.classes.tolist() == [0, 0, 1]
    assert last.labels.negative_classes.tolist() == [2]
    assert last.labels.not_exhaustive_classes.tolist() == [0, 1]
    assert last.labels.image_texts.shape == (0,)
    assert report.num_used("box") == 4


def test_a_fingerprint_is_of_all_that_training_reads(tmp_path):
    content = lvis_content()
    content["annotations"].append({"id": 5, "image_id": 30, "category_id": 5, "bbox": [1, 2, 9, 9], "iscrowd": 1})
    index, _ = load(tmp_path, content)
    changes: dict[str, Any] = {
        "categories": (replace(index.categories[0], synonyms=("puss",)), *index.categories[1:]),
        "image_files": index.image_files[::-1],
        "image_ids": index.image_ids + 1,
        "image_sizes": index.image_sizes[:, ::-1].copy(),
    }
    for name in ("boxes", "classes", "crowd_boxes", "negative_classes", "not_exhaustive_classes"):
        labels = getattr(index, name)
        assert len(labels.values) > 0
        changes[name] = Ragged(labels.values[::-1] + 1, labels.offsets)
        moved = Ragged(labels.values, np.sort(len(labels.values) - labels.offsets))  # to other images
        changes[f"{name} of images"] = moved
    assert replace(index, path=Path("elsewhere.json")).fingerprint() == index.fingerprint()
    fingerprints = {
        name: replace(index, **{name.removesuffix(" of images"): value}).fingerprint()
        for name, value in changes.items()
    }
    assert len({index.fingerprint(), *fingerprints.values()}) == 1 + len(changes), fingerprints


def test_coco_records_crowds_and_file_names(tmp_path):
    content = lvis_content()
    for row in content["images"]:
        row["file_name"] = f"{row['id']}.jpg"
        del row["neg_category_ids"], row["not_exhaustive_category_ids"]
    content["annotations"][2]["iscrowd"] = 1
    for row in content["categories"][1:]:
        del row["synonyms"]
    index, _ = load(tmp_path, content, format="coco", images=None)
    record = index.record(2)
    assert record.path == Path("20.jpg")
    assert record.labels.boxes.tolist() == [[10, 20, 40, 60], [0, 0, 100, 100]]
    assert record.labels.crowd_boxes.tolist() == [[1, 2, 4, 6]]
    assert record.labels.negative_classes.tolist() == record.labels.not_exhaustive_classes.tolist() == []
    assert [(c.frequency, c.image_count) for c in index.categories] == [(None, 1)] * 3
    assert [c.synonyms for c in index.categories] == [(), (), ("yak", "grunting_ox")]


def test_lvis_with_file_names_only(tmp_path):
    content = lvis_content()
    for row in content["images"]:
        del row["coco_url"]
        row["file_name"] = f"folder/{row['id']}.jpg"
    assert load(tmp_path, content)[0].record(0).path == Path("root/folder/30.jpg")


def test_a_file_without_images_or_objects(tmp_path):
    index, report = load(tmp_path, {"images": [], "categories": [], "annotations": []})
    assert (len(index), index.categories, report.num_used("box")) == (0, (), 0)
    content = {**lvis_content(), "annotations": []}
    index, _ = load(tmp_path, content)
    assert [len(index.record(row).labels.boxes) for row in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "format"), [("lvis_val_100.json", "lvis"), ("coco_instances_val2014_100.json", "coco")]
)
def test_real_samples_are_read_whole(shared_data, name, format):
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"no {path}")
    report = DataReport()
    index = load_annotations(path, shared_data, format=format, report=report)
    content = json.loads(path.read_text())
    category_ids = sorted(row["id"] for row in content["categories"])
    assert [category.id for category in index.categories] == category_ids
    assert [index.record(row).id for row in range(len(index))] == [row["id"] for row in content["images"]]
    objects = Counter((row["image_id"], row["category_id"]) for row in content["annotations"] if not row.get("iscrowd"))
    found = Counter(
        (record.id, category_ids[class_row])
        for record in map(index.record, range(len(index)))
        for class_row in record.labels.classes.tolist()
    )
    assert found == objects
    assert len(index.crowd_boxes.values) == sum(row.get("iscrowd", 0) for row in content["annotations"])
    for row, image in enumerate(content["images"]):
        record = index.record(row)
        objects_here = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        expected = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in objects_here)]
        np.testing.assert_allclose(record.labels.boxes, np.array(expected).reshape(-1, 4), atol=2e-3)
        assert [category_ids[c] for c in record.labels.negative_classes] == image.get("neg_category_ids", [])
        assert (record.labels.boxes >= 0).all()
        assert (record.labels.boxes[:, [2, 3]] <= [image["width"], image["height"]]).all()
        assert record.path.name == (image["coco_url"] if format == "lvis" else image["file_name"]).split("/")[-1]
    assert report.num_used("box") == len(content["annotations"])


def test_truncated_json_stops_with_file_and_byte(tmp_path):
    content = lvis_content()
    content["categories"][1]["name"] = "chât"  # non-ASCII, so that byte and character positions differ
    whole = json.dumps(content, ensure_ascii=False).encode()
    path = tmp_path / "cut.json"
    for end in np.linspace(0, len(whole) - 1, 20).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=rf"cut\.json: invalid .* at byte \d+ of {end}") as caught:
            load_annotations(path, None, format="lvis", report=DataReport())
        assert caught.value.code == "F1"
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(DataError, match=f"at byte {len(whole) - 1} of {len(whole)}"):
        load_annotations(path, None, format="lvis", report=DataReport())


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": [1], "categories": [], "annotations": []}', "[" * 99_999])
def test_other_json_is_no_annotation_file(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"other\.json"):
        load_annotations(path, None, format="coco", report=DataReport())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: annotation file cannot be read"):
        load_annotations(tmp_path / "none.json", None, format="coco", report=DataReport())


@pytest.mark.parametrize("name", ["images", "categories"])
def test_duplicate_ids_name_both_records(tmp_path, name):
    content = lvis_content()
    content[name][2]["id"] = content[name][0]["id"]
    expected = r"categories records \d and \d" if name == "categories" else f"{name} records 0 and 2"
    with pytest.raises(DataError, match=f"{expected} have the same id, {content[name][0]['id']}") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F2"


def test_unknown_references_are_counted_and_the_first_20_named(tmp_path):
    content = lvis_content()
    for row in range(30):
        content["annotations"].append({"id": 100 + row, "image_id": 999, "category_id": 2, "bbox": [0, 0, 5, 5]})
    content["annotations"].append({"id": 200, "image_id": 20, "category_id": [2], "bbox": [0, 0, 5, 5]})
    content["images"][0]["neg_category_ids"] = [True]
    with pytest.raises(DataError, match="32 references") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F3"
    assert "annotation 119 of image 999" in str(caught.value)
    assert "annotation 120 " not in str(caught.value)


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, float("nan"), 5],
        [0, float("inf"), 5, 5],
        [0, -float("inf"), 5, 5],
        ["0 px", 0, 5, 5],
        ["nan", 0, 5, 5],
        [0, 0, "5"],
        [0, 0, 5],
        [0, 0, 5, None],
        [True, 0, 5, 5],
        [10**400, 0, 5, 5],
        None,
        "0055",
    ],
)
def test_boxes_that_are_not_four_numbers_stop_with_the_annotation_id(tmp_path, box):
    content = lvis_content()
    content["annotations"][2]["bbox"] = box
    with pytest.raises(DataError, match=r"annotation 3: bbox") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F6"


def test_numbers_of_a_box_may_be_text_and_are_counted(tmp_path):
    content = lvis_content()
    expected, _ = load(tmp_path, content)
    x, y, width, height = content["annotations"][2]["bbox"]
    content["annotations"][2]["bbox"] = [x, y, f"{width:.4f}", f"{height:.4f}"]
    index, report = load(tmp_path, content)
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts() == {("F6", "repaired"): 1}
    assert "annotation 3: the numbers in" in report.first_records()[Finding("F6", "repaired")][0]


@pytest.mark.parametrize("missing", ["left out", None, []])
@pytest.mark.parametrize("xyxy", [False, True])
def test_without_bbox_the_box_around_the_polygons_is_taken_and_counted(tmp_path, missing, xyxy):
    content = lvis_content()
    options = FormatOptions(xyxy=xyxy)
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        row["bbox"] = [x, y, x + width, y + height] if xyxy else row["bbox"]
    path = tmp_path / "boxes.json"

    def read() -> tuple[AnnotationIndex, Truth, DataReport]:
        path.write_text(json.dumps(content))
        report = DataReport()
        index = load_annotations(path, Path("root"), format="lvis", report=report, options=options)
        return index, load_truth(path, format="coco", options=options), report

    expected, expected_truth, _ = read()
    for row in content["annotations"][::2]:  # the boxes 10, 20, 30, 40 and 1, 2, 3, 4
        x, y, right, bottom = row["bbox"] if xyxy else (*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:]))
        row["segmentation"] = [
            [x, float(y + 1), x + 1, y + 2, float(right), y + 1],
            [x + 1, float(y), x + 2, float(bottom), x + 1, y + 1, x + 1, str(y + 1)],
        ]
        row["bbox"] = missing
        if missing == "left out":
            del row["bbox"]
    index, truth, report = read()
    assert index.fingerprint() == expected.fingerprint()
    np.testing.assert_array_equal(truth.boxes_xywh, expected_truth.boxes_xywh)
    np.testing.assert_array_equal(truth.areas_px, expected_truth.areas_px)
    assert report.counts() == {("F6", "repaired"): 2}
    where = f"{path}: annotation 3: has no bbox; the box around its polygons is used"
    assert report.first_records()[Finding("F6", "repaired")][1] == where


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (
            {"size": [100, 100], "counts": [5, 9]},
            "has no bbox, and its segmentation is a mask, which is not converted to a box",
        ),
        ([[1, 2, 3, 4]], r".* has \[1, 2, 3, 4\]; a polygon has an even number of finite numbers, 6 or more"),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]], "has .*7]; a polygon has an even number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "has .*nan]; a polygon has an even number"),
        ([[1, 2, 3, 4, 5, 1e9]], "has .*]; a polygon has an even number"),
        ([1, 2, 3, 4, 5, 6], ".* has 1; a polygon has an even number"),
        ([], "bbox is None, not four finite numbers"),
    ],
)
def test_without_bbox_and_polygons_an_annotation_is_refused(tmp_path, segmentation, words):
    content = lvis_content()
    content["annotations"][2]["segmentation"] = segmentation
    load(tmp_path, content)  # with a box, the segmentation is not needed
    del content["annotations"][2]["bbox"]
    with pytest.raises(DataError, match=rf"annotation 3: {words}") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F6"


@pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_lvis_without_federated_labels_stops(tmp_path, field):
    content = lvis_content()
    del content["images"][1][field]
    with pytest.raises(DataError, match=f"image 10 has no {field}") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F7"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("images", "height", 0),
        ("images", "width", "640"),
        ("images", "id", None),
        ("annotations", "id", 1.5),
        ("annotations", "id", "one"),
        ("images", "id", "0x1"),
        ("annotations", "iscrowd", 2),
        ("annotations", "iscrowd", 1.5),
        ("annotations", "iscrowd", "yes"),
        ("annotations", "iscrowd", None),
        ("categories", "frequency", "x"),
        ("categories", "name", 3),
        ("annotations", "id", 2**70),
    ],
)
def test_a_missing_or_senseless_field_is_named(tmp_path, name, field, value):
    content = lvis_content()
    content[name][0][field] = value
    with pytest.raises(DataError, match=field):
        load(tmp_path, content)


@pytest.mark.parametrize("form", [str, float])
def test_ids_of_another_type_are_the_numbers_they_stand_for(tmp_path, form):
    content = lvis_content()
    expected, _ = load(tmp_path, content)
    for row in (*content["images"], *content["categories"], *content["annotations"]):
        row.update({field: form(row[field]) for field in ("id", "image_id", "category_id") if field in row})
    for row in content["images"]:
        row["neg_category_ids"] = [form(value) for value in row["neg_category_ids"]]
    assert load(tmp_path, content)[0].fingerprint() == expected.fingerprint()


def test_an_id_as_a_number_and_as_text_is_the_same_id_twice(tmp_path):
    content = lvis_content()
    content["images"][1]["id"] = str(content["images"][0]["id"])
    with pytest.raises(DataError, match="images records 0 and 1 have the same id") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F2"


def test_ids_that_are_no_numbers_are_refused_with_what_to_do(tmp_path):
    content = lvis_content()
    content["images"][1]["id"] = "a/1.jpg"
    words = "images record a/1.jpg: id is 'a/1.jpg', not int; ids must be whole numbers: number the images"
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path, content)
    assert caught.value.code == "F1"


@pytest.mark.parametrize("ids", [[None, None, None, None], [1, 2, 1, 2], [7, 7, 7, 7]])
def test_annotations_whose_ids_name_nothing_are_numbered_anew_and_counted(tmp_path, ids):
    content = lvis_content()
    expected, _ = load(tmp_path, content)
    for row, identifier in zip(content["annotations"], ids, strict=False):
        row["id"] = identifier
        if identifier is None:
            del row["id"]
    index, report = load(tmp_path, content)
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts()[Finding("F2", "repaired")] == 1


@pytest.mark.parametrize(
    ("value", "crowd"), [(0, False), (1, True), (False, False), (True, True), ("0", False), ("1", True)]
)
def test_a_crowd_is_what_iscrowd_means(tmp_path, value, crowd):
    content = lvis_content()
    content["annotations"] = [{"id": 1, "image_id": 20, "category_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": value}]
    index, _ = load(tmp_path, content)
    assert (len(index.boxes.values), len(index.crowd_boxes.values)) == ((0, 1) if crowd else (1, 0))


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(lvis_content()).encode())
    index = load_annotations(path, Path("root"), format="lvis", report=DataReport())
    assert index.fingerprint() == load(tmp_path, lvis_content())[0].fingerprint()


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg", "b/..//a.jpg"])
@pytest.mark.parametrize("ids", [[1, 2, 3], ["1", "2", "3"]])  # read by columns, and record by record
def test_image_records_of_one_file_are_counted(tmp_path, ids, again):
    images = [
        {"id": identifier, "file_name": name, "height": 9, "width": 9}
        for identifier, name in zip(ids, ("a.jpg", "b.jpg", again), strict=True)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "gull"}]}
    index, report = load(tmp_path, content, "coco")
    assert len(index) == 3
    assert report.counts() == {("F2", "noticed"): 1}
    assert "annotations.json: images 1 and 3 are both a.jpg" in report.first_records()[Finding("F2", "noticed")][0]


@pytest.mark.parametrize("name", ["", "  ", "_", "&nbsp;"])
def test_a_class_without_a_name_stops(tmp_path, name):
    content = lvis_content()
    content["categories"][0]["name"] = name
    with pytest.raises(DataError, match=r"category \d+ has an empty name"):
        load(tmp_path, content)


def test_names_and_objects_that_are_there_twice_are_counted(tmp_path, capsys):
    content = lvis_content()
    content["categories"][0]["name"], content["categories"][1]["name"] = "Coffee cup", "coffee_cup "
    content["annotations"] += [content["annotations"][0] | {"id": 50}, content["annotations"][0] | {"id": 51}]
    index, report = load(tmp_path, content)
    assert report.counts()[Finding("F2", "noticed")] == 3
    assert len(index.boxes.values) == len(load(tmp_path, lvis_content())[0].boxes.values) + 2
    assert "warning[F2]" in capsys.readouterr().err
    report.write(tmp_path / "report.json")
    first = json.loads((tmp_path / "report.json").read_text())["first_records"]["F2 noticed"]
    assert "annotation 50: has the same image, class and box as an earlier one" in first[0]
    assert "'coffee_cup ' and 'Coffee cup'" in first[2] or "'Coffee cup' and 'coffee_cup '" in first[2]


@pytest.mark.parametrize(
    ("names", "text"),
    [(("salt/pepper", "salt or pepper"), "salt or pepper"), (("bow(weapon)", "bow_(weapon)"), "bow (weapon)")],
)
def test_names_that_become_one_text_are_counted_and_named(tmp_path, capsys, names, text):
    content = lvis_content()
    for category, name in zip(content["categories"], names, strict=False):
        category["name"] = name
    index, report = load(tmp_path, content)
    assert set(names) <= set(index.names)  # both stay classes
    assert report.counts()[Finding("F2", "noticed")] == 1
    told = capsys.readouterr().err
    assert f"are one text for a detector, {text!r}; training uses both" in told
    assert all(repr(name) in told for name in names)


def many_boxes(boxes: Sequence[Sequence[float]]) -> dict:
    content = lvis_content()
    content["images"][0].update(height=50, width=100)
    content["annotations"] = [
        {"id": row, "image_id": 30, "category_id": 2, "bbox": list(box)} for row, box in enumerate(boxes)
    ]
    return content


def test_a_file_of_corners_is_told_from_one_of_sides(tmp_path):
    corners = [[60, 20, 95, 45], [50, 5, 80, 40], [70, 30, 90, 50], [55, 1, 100, 9], [1, 1, 9, 9]]
    with pytest.raises(DataError, match=r"4 of 5 boxes reach outside their image .* data\.source\.xyxy=true") as caught:
        load(tmp_path, many_boxes(corners))
    assert caught.value.code == "F5"
    path = tmp_path / "corners.json"
    path.write_text(json.dumps(many_boxes(corners)))
    options = FormatOptions(xyxy=True)
    index = load_annotations(path, Path("root"), format="lvis", report=DataReport(), options=options)
    assert index.record(0).labels.boxes.tolist() == corners
    sides = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
    expected = load_truth(path, format="coco", options=options)
    path.write_text(json.dumps(many_boxes(sides)))
    truth = load_truth(path, format="coco")
    np.testing.assert_array_equal(truth.boxes_xywh, expected.boxes_xywh)
    np.testing.assert_array_equal(truth.areas_px, expected.areas_px)
    few = [*sides, *corners[:3]]  # only three leave the image: damage, which is clamped
    assert load(tmp_path, many_boxes(few))[1].counts()[Finding("F5", "repaired")] == 3
    mixed = [*corners, [80, 5, 10, 10]]  # not a pair of corners
    assert load(tmp_path, many_boxes(mixed))[1].counts()[Finding("F5", "repaired")] == 4


@pytest.mark.parametrize(
    "corners",
    [
        [[60, 2, 95, 20], [50, 5, 80, 30], [70, 1, 90, 40], [55, 1, 100, 9]],
        [[5, 20, 30, 45], [5, 25, 40, 40], [6, 30, 30, 50], [7, 28, 20, 48]],
    ],
    ids=["at the right", "at the bottom"],
)
def test_a_file_of_corners_is_told_by_boxes_that_leave_the_image_on_one_side_alone(corners, tmp_path):
    with pytest.raises(DataError, match="4 of 4 boxes reach outside their image") as caught:
        load(tmp_path, many_boxes(corners))
    assert caught.value.code == "F5"


def test_boxes_as_shares_of_the_image_are_named(tmp_path):
    with pytest.raises(DataError, match="all coordinates are from 0 to 1") as caught:
        load(tmp_path, many_boxes([[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1], [0.3, 0.3, 0.1, 0.2], [0.5, 0, 0.5, 1]]))
    assert caught.value.code == "F6"


@pytest.mark.parametrize(
    ("box_xywh", "expected", "event"),
    [
        ([10, 10, 20, 20], [10, 10, 30, 30], None),
        ([10, 10, 0, 20], None, ("F4", "skipped")),
        ([10, 10, 20, -5], None, ("F4", "skipped")),
        ([10, 10, 0.9, 20], None, ("F4", "skipped")),
        ([99.5, 10, 20, 20], None, ("F4", "skipped")),  # only half a pixel is inside
        ([-10, 40, 30, 40], [0, 40, 20, 50], ("F5", "repaired")),
        ([100, 10, 20, 20], None, ("F5", "skipped")),
        ([-30, 10, 20, 20], None, ("F5", "skipped")),
        ([10, 10, 90.0001, 20], [10, 10, 100, 30], None),  # a rounding error of decimals
    ],
)
def test_what_becomes_of_a_box(tmp_path, box_xywh, expected, event):
    content = lvis_content()
    content["images"][0].update(height=50, width=100)
    content["annotations"] = [{"id": 7, "image_id": 30, "category_id": 2, "bbox": box_xywh}]
    index, report = load(tmp_path, content)
    assert index.record(0).labels.boxes.tolist() == ([expected] if expected else [])
    assert len(index.record(0).labels.classes) == len(index.record(0).labels.boxes)
    assert report.counts() == ({event: 1} if event else {})
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["seen"]["box"] == 1
    if event:
        assert "annotation 7: " in written["first_records"][" ".join(event)][0]


coordinates = st.floats(-300, 300) | st.integers(-300, 300)


@settings(max_examples=50, deadline=None)
@given(boxes=st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=4))
def test_kept_boxes_are_inside_and_large_enough_and_all_are_counted(tmp_path_factory, boxes):
    content = lvis_content()
    content["annotations"] = [
        {"id": row, "image_id": 10, "category_id": 2, "bbox": list(box)} for row, box in enumerate(boxes)
    ]
    index, report = load(tmp_path_factory.mktemp("boxes"), content)
    kept = index.record(1).labels.boxes
    assert (kept >= 0).all()
    assert (kept <= [200, 50, 200, 50]).all()
    assert (kept[:, 2:] - kept[:, :2] >= 0.99).all()
    assert report.num_used("box") == len(kept)
    assert len(kept) + report.num_skipped("F4") + report.num_skipped("F5") == len(boxes)


def test_too_many_bad_boxes_stop(tmp_path):
    content = lvis_content()
    for row in range(5):
        content["annotations"].append({"id": 100 + row, "image_id": 20, "category_id": 2, "bbox": [0, 0, 0, 5]})
    with pytest.raises(DataError, match=r"5 of 9 skipped \(5 of them in a row\).*F4.*annotation 100") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F4"


def test_report_counts_samples_apart_from_boxes_and_keeps_20_records(tmp_path):
    report = DataReport()
    report.count_noticed("F8", "image 0")
    assert not report.has_skipped()
    for row in range(30):
        report.count_skipped("F4", f"box {row}")
    report.count_used(1000)
    for row in range(4):
        report.count_skipped("F8", f"image {row}")
    report.raise_if_too_many(10)  # four faulty records never stop
    report.count_skipped("F9", "image 4")
    report.raise_if_too_many(501)  # five stop only if they are at least 1 % of all
    with pytest.raises(DataError, match="5 of 500 skipped"):
        report.raise_if_too_many(500)
    report.count_repaired("F12", "image 9")
    assert report.has_skipped()
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["seen"] == {"sample": 1005, "box": 30}
    assert written["skipped_by_code"] == {"F4": 30, "F8": 4, "F9": 1}
    assert written["repaired_by_code"] == {"F12": 1}
    assert written["first_records"]["F4 skipped"] == [f"box {row}" for row in range(20)]


def test_a_row_of_skips_stops_after_reports_are_added_too():
    first, second = DataReport(), DataReport()
    for row in range(100):
        second.count_skipped("F8", f"image {row}")
    second.count_used(10**6)
    first.count_used(3)
    first.add(second)
    error = first.too_many(10**6)
    assert error is not None
    assert "100 of 1000000 skipped (100 of them in a row)" in str(error)
    assert (first.num_used(), first.num_seen()) == (10**6 + 3, 10**6 + 103)


def test_a_record_that_is_skipped_again_in_every_epoch_counts_once():
    report = DataReport()
    for _ in range(30):
        for number in range(4):
            report.count_skipped("F8", f"{number}.jpg: file is missing")
        report.count_used(6)
    assert report.num_skipped("F8") == 120
    assert report.too_many(10) is None
    report.count_skipped("F9", "4.jpg: cannot be decoded")
    error = report.too_many(10)
    assert error is not None
    assert "5 of 10 skipped (4 of them in a row), by code {'F8': 4, 'F9': 1}" in str(error)


def test_a_hundred_in_a_row_stop_but_not_with_a_good_one_between():
    report = DataReport()
    for _ in range(2):
        for row in range(99):
            report.count_skipped("F8", f"image {row}")
        report.raise_if_too_many(10**6)
        report.count_used()
    for row in range(100):
        report.count_skipped("F8", f"image {row}")
    report.count_used()  # comes too late: 100 in a row were skipped
    with pytest.raises(DataError, match="100 of them in a row"):
        report.raise_if_too_many(10**6)


@pytest.mark.parametrize("parent", ["animals", "cat"])
def test_a_parent_class_without_boxes_is_neither_learned_nor_evaluated(tmp_path, parent):
    """A parent class without boxes is left out: Roboflow makes the project's name a class, the supercategory of all
    others, and perhaps the name of one."""
    content = lvis_content()
    for row in content["images"]:
        row["file_name"] = f"{row['id']}.jpg"
    expected, _ = load(tmp_path, content, format="coco")
    for row in content["categories"]:
        row["supercategory"] = parent
    content["categories"].append({"id": 0, "name": parent, "supercategory": "none"})
    index, report = load(tmp_path, content, format="coco")
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts() == {("F2", "repaired"): 1}
    path = tmp_path / "annotations.json"
    judged = load_annotations(path, Path("root"), format="coco", report=DataReport(), with_truth=True)
    assert judged.truth is not None
    assert [category.name for category in judged.truth.categories] == ["cat", "dog", "yak"]
    assert len(judged.truth.boxes_xywh) == 4
    content["annotations"][0]["category_id"] = 0  # a parent class with objects of its own stays
    with_objects, report = load(tmp_path, content, format="coco")
    assert [category.name for category in with_objects.categories] == [parent, "cat", "dog", "yak"]
    assert ("F2", "repaired") not in report.counts()


@pytest.mark.parametrize("area", [None, "100.5"])
def test_areas_of_converters_stop_no_evaluation(tmp_path, area):
    content = lvis_content()
    for row in content["images"]:
        row["file_name"] = f"{row['id']}.jpg"
    for row in content["annotations"]:
        row["area"] = area
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    truth = load_truth(path, format="coco")
    expected = [100.5] * 4 if area else [1200.0, 99.75, 12.0, 10000.0]
    assert truth.areas_px.tolist() == expected
    with pytest.raises(DataError, match="area is"):
        load_truth(path, format="lvis")


def test_a_synonym_that_is_the_name_of_another_class_is_counted(tmp_path):
    content = lvis_content()
    content["categories"][0]["synonyms"] = [content["categories"][0]["name"].upper(), "Cat ", "kitty"]
    others = [category["name"] for category in content["categories"][1:]]
    _, report = load(tmp_path, content)
    assert report.counts() == {("F2", "noticed"): 1}
    (line,) = report.first_records()[Finding("F2", "noticed")]
    assert "has the synonym 'Cat ', which is the name of 'cat'; training uses it for both" in line
    assert "cat" in others


def test_a_synonym_that_is_no_text_stops(tmp_path):
    content = lvis_content()
    content["categories"][0]["synonyms"] = ["ox", None]
    with pytest.raises(DataError, match=r"category 9: the synonym None is not a string") as caught:
        load(tmp_path, content)
    assert caught.value.code == "F1"


@pytest.mark.parametrize("given", ["", None])
def test_an_url_that_says_nothing_leaves_the_file_name(tmp_path, given):
    content = lvis_content()
    content["images"] = [row | {"coco_url": given, "file_name": f"{row['id']}.jpg"} for row in content["images"]]
    assert load(tmp_path, content)[0].image_files == ("30.jpg", "10.jpg", "20.jpg")


@pytest.mark.parametrize("name", ["annotations", "strange"])
def test_boxes_of_another_form_are_refused_where_only_a_truth_is_wanted(tmp_path, name):
    """Both readers refuse corner boxes even if only the truth is needed; otherwise a results file would silently get AP
    0."""
    content = lvis_content()
    content["images"] = [row | {"file_name": "a.jpg"} for row in content["images"]]
    rows = [[50, 20, 80, 60], [60, 10, 90, 30], [70, 40, 99, 80], [55, 5, 75, 95], [80, 1, 100, 100]]
    content["annotations"] = [
        {"id": number, "image_id": 20, "category_id": 2, "bbox": box} for number, box in enumerate(rows)
    ]
    if name == "strange":
        content["annotations"][0]["iscrowd"] = False
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"all fit as \[x1, y1, x2, y2\]"):
        load_truth(path, format="coco")
    assert load_truth(path, format="coco", options=FormatOptions(xyxy=True)).boxes_xywh[0].tolist() == [50, 20, 30, 40]
    for row in content["annotations"]:
        row["bbox"] = [number / 100 for number in row["bbox"]]
    path.write_text(json.dumps(content))
    for options in (FormatOptions(), FormatOptions(xyxy=True)):
        with pytest.raises(DataError, match="relative to the image size"):
            load_truth(path, format="coco", options=options)
        with pytest.raises(DataError, match="relative to the image size"):
            load_annotations(path, None, format="coco", options=options)


def test_a_frequency_is_of_lvis_alone(tmp_path):
    content = lvis_content()
    content["categories"][0]["frequency"] = "often"
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    frequencies = [category.frequency for category in load_truth(path, format="coco").categories]
    assert frequencies == ["f", "c", None]
    with pytest.raises(DataError, match="frequency is 'often'"):
        load(tmp_path, content)
