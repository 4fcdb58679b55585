"""Hand-written exports of annotation tools all become the same clean file in COCO's form."""

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_tools import run_tool

from ovd.choices import ImportFormatName
from ovd.data.annotations import load_annotations
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
from ovd.data.import_boxes import import_boxes
from ovd.data.report import DataError, DataReport, Finding
from ovd.jobs.import_boxes import import_into_file

# Two images of 60 x 40 and 30 x 50 (width x height) with a cat, a dog, and a cat that leaves the image.
SIZES = {"a": (60, 40), "b": (30, 50)}
EXPECTED = [("a.jpg", "cat", [5, 10, 20, 10]), ("a.jpg", "dog", [30, 0, 15, 40]), ("b.jpg", "cat", [10, 20, 20, 30])]
OBJECTS = [("a", "cat", [5, 10, 20, 10]), ("a", "dog", [30, 0, 15, 40]), ("b", "cat", [10, 20, 25, 33])]


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in SIZES.items():
        Image.new("RGB", size).save(folder / f"{name}.jpg")
    return folder


def imported(
    annotations: Path, images: Path | None, format: ImportFormatName, **options: Any
) -> tuple[list[tuple[str, str, list[float]]], dict[str, Any], DataReport]:
    report = DataReport()
    content = import_boxes(annotations, images, format, report, options=FormatOptions(**options)).content
    files = {image["id"]: image["file_name"].rsplit("/")[-1] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        assert (image["width"], image["height"]) == SIZES[Path(image["file_name"]).stem]
    objects = [
        (files[row["image_id"]], names[row["category_id"]], [float(number) for number in row["bbox"]])
        for row in content["annotations"]
    ]
    return sorted(objects), content, report


def coco(folder: Path, file_name: str = "{}.jpg", **more: Any) -> dict[str, Any]:
    ids = {"a": 4, "b": 9}
    return {
        "info": {"description": "exported"},
        "licenses": [],
        "images": [
            {"id": ids[name], "file_name": file_name.format(name), "width": width, "height": height, "license": 1}
            for name, (width, height) in SIZES.items()
        ],
        "categories": [{"id": 2, "name": "dog", **more}, {"id": 1, "name": "cat", **more}],
        "annotations": [
            {"id": number, "image_id": ids[image], "category_id": {"cat": 1, "dog": 2}[name], "bbox": box,
             "area": 7.5, "iscrowd": 0, "segmentation": [], "attributes": {"occluded": False}}
            for number, (image, name, box) in enumerate(OBJECTS)
        ],
    }  # fmt: skip


def test_a_coco_export_keeps_areas_and_gets_new_ids(tmp_path, images):
    path = tmp_path / "instances_default.json"
    path.write_text(json.dumps(coco(tmp_path)))
    objects, content, report = imported(path, images, "coco")
    assert objects == EXPECTED
    assert report.counts() == {("F5", "repaired"): 1}
    assert [row["area"] for row in content["annotations"]] == [7.5] * 3
    assert [row["id"] for row in content["annotations"]] == [1, 2, 3]


def test_areas_stay_with_their_boxes_and_are_no_larger(tmp_path, images):
    content = coco(tmp_path)
    first, second, third = content["annotations"]
    thin = {**first, "id": 8, "bbox": [1, 1, 0.5, 9], "area": 3.0}
    content["annotations"] = [thin, {**first, "area": 50.0}, {**second, "area": 60.0}, {**third, "area": 800.0}]
    path = tmp_path / "instances_default.json"
    path.write_text(json.dumps(content))
    objects, written, _ = imported(path, images, "coco")
    assert objects == EXPECTED
    assert [row["area"] for row in written["annotations"]] == [50.0, 60.0, 600.0]  # the last box is cut to 20 x 30


def test_label_studio_writes_folders_of_its_own(tmp_path, images):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(coco(tmp_path, "..\\..\\label-studio\\media\\upload\\1\\{}.jpg")))
    with pytest.raises(DataError, match=r"by_base_name=true"):
        imported(path, images, "coco")
    objects, content, _ = imported(path, images, "coco", by_base_name=True)
    assert objects == EXPECTED
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]


def test_roboflow_has_a_parent_class_without_boxes_and_a_file_beside_the_images(images):
    content = coco(images, supercategory="pets")
    content["categories"].append({"id": 0, "name": "pets", "supercategory": "none"})
    (images / "_annotations.coco.json").write_text(json.dumps(content))
    objects, content, report = imported(images, None, "coco")
    assert objects == EXPECTED
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert report.counts()[Finding("F2", "repaired")] == 1
    assert (
        "category 0, 'pets', is left out: it is the parent of other"
        in report.first_records()[Finding("F2", "repaired")][0]
    )


def test_images_that_are_missing_are_counted_and_left_out(images):
    content = coco(images)
    more = [{**content["images"][0], "id": 100 + number, "file_name": f"{number}.jpg"} for number in range(600)]
    for row in more[3:]:
        (images / row["file_name"]).touch()
    content["images"] += more
    content["annotations"] += [{**content["annotations"][0], "id": 100, "image_id": 101}]
    path = images / "all.json"
    path.write_text(json.dumps(content))
    report = DataReport()
    written = import_boxes(path, images, "coco", report).content
    assert len(written["images"]) == len(SIZES) + 597
    assert report.num_skipped("F8") == 3
    assert (report.num_used("box"), report.num_seen("box")) == (3, 4)


@pytest.mark.parametrize("options", [{}, {"sizes_from_images": True}])
def test_an_image_that_is_missing_and_has_no_size_is_left_out_too(images, options):
    content = coco(images)
    size = {"height": 60, "width": 90} if options else {}
    content["images"].append({"id": 100, "file_name": "none.jpg", **size})
    content["annotations"].append({**content["annotations"][0], "id": 100, "image_id": 100})
    path = images / "all.json"
    path.write_text(json.dumps(content))
    objects, written, report = imported(path, images, "coco", **options)
    assert objects == EXPECTED
    assert len(written["images"]) == len(SIZES)
    assert report.num_skipped("F8") == 1
    assert (report.num_used("box"), report.num_seen("box")) == (3, 4)


def test_masks_that_cvat_exports_as_crowds_may_be_objects(images):
    content = coco(images)
    for row in content["annotations"]:
        row["iscrowd"] = 1
    path = images / "instances_default.json"
    path.write_text(json.dumps(content))
    report = DataReport()
    crowds = import_boxes(path, images, "coco", report).content["annotations"]
    objects = import_boxes(path, images, "coco", report, crowds_as_objects=True).content["annotations"]
    assert {row["iscrowd"] for row in crowds} == {1}
    assert objects == [{**row, "iscrowd": 0} for row in crowds]


def test_a_class_without_boxes_that_is_no_parent_stays(tmp_path, images):
    content = coco(tmp_path)
    content["categories"].append({"id": 7, "name": "cow", "supercategory": "cow"})
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert [row["name"] for row in imported(path, images, "coco")[1]["categories"]] == ["cat", "dog", "cow"]


def labelme(folder: Path, image_path: str = "{}.jpg") -> None:
    for name, (width, height) in SIZES.items():
        shapes: list[dict[str, Any]] = []
        for image, label, (x, y, w, h) in OBJECTS:
            if image == name == "a" and label == "dog":  # a rectangle with its corners in another order
                shapes.append({"label": label, "shape_type": "rectangle", "points": [[x + w, y], [x, y + h]]})
            elif image == name:
                corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
                shapes.append({"label": label, "shape_type": "polygon", "points": corners, "group_id": None})
        (folder / f"{name}.json").write_text(
            json.dumps({"version": "5.4.1", "shapes": shapes, "imagePath": image_path.format(name), "imageData": None,
                        "imageHeight": height, "imageWidth": width})
        )  # fmt: skip


@pytest.mark.parametrize("by_base_name", [False, True])
@pytest.mark.parametrize("format", ["labelme", "csv", "via"])
def test_a_name_with_a_backslash_may_be_that_of_a_file(images, format, by_base_name):
    """Linux allows backslashes in names, and archives made on Windows leave such files."""
    (images / "a.jpg").rename(images / "x\\a.jpg")
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[5, 10], [25, 20]]}
    region = {"shape_attributes": {"name": "rect", "x": 5, "y": 10, "width": 20, "height": 10}}
    region["region_attributes"] = {"kind": "cat"}
    text = {
        "labelme": json.dumps({"imagePath": "x\\a.jpg", "imageHeight": 40, "imageWidth": 60, "shapes": [shape]}),
        "csv": "filename,class,xmin,ymin,xmax,ymax\nx\\a.jpg,cat,5,10,25,20\n",
        "via": json.dumps({"1": {"filename": "x\\a.jpg", "regions": [region]}}),
    }[format]
    (images / "boxes.json").write_text(text)
    report, options = DataReport(), FormatOptions(by_base_name=by_base_name)
    source = images if format == "labelme" else images / "boxes.json"
    content = import_boxes(source, images, format, report, options=options).content
    assert [image["file_name"] for image in content["images"]] == ["x\\a.jpg"]
    assert [row["bbox"] for row in content["annotations"]] == [[5, 10, 20, 10]]
    assert report.num_skipped("F8") == 0


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "not a folder; give the folder of"), ("images", "no .json file in this")]
)
def test_labelme_without_files_says_what_is_missing(name, reason, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=rf"^\S+{name}: .*{reason}"):
        imported(tmp_path / name, None, "labelme")


def test_labelme(tmp_path, images):
    labelme(images)
    objects, _, report = imported(images, None, "labelme")
    assert objects == EXPECTED
    assert report.counts() == {("F5", "repaired"): 1}
    content = json.loads((images / "a.json").read_text())
    content["shapes"] += [
        {"label": "cat", "shape_type": "circle", "points": [[30, 20], [33, 24]]},
        {"label": "cat", "shape_type": "point", "points": [[3, 4]]},
        {"label": "cat", "shape_type": "polygon", "points": [[3, 4]]},
        {"label": "cat", "shape_type": "polygon", "points": [[3, 4], [9, 9]]},
    ]
    content["imageHeight"] = None
    (images / "a.json").write_text(json.dumps(content))
    objects, _, report = imported(images, None, "labelme")
    assert ("a.jpg", "cat", [25.0, 15.0, 10.0, 10.0]) in objects
    assert len(objects) == 4
    assert report.counts() == {("F4", "skipped"): 3, ("F5", "repaired"): 1, ("F12", "repaired"): 1}
    point, polygon, line = report.first_records()[Finding("F4", "skipped")]
    assert "shape 4: a point has no box" in point
    assert "shape 5: a polygon needs three points, not 1" in polygon
    assert "shape 6: a polygon needs three points, not 2" in line


def test_labelmes_files_may_have_an_upper_case_suffix(images):
    labelme(images)
    (images / "a.json").rename(images / "a.JSON")
    assert imported(images, None, "labelme")[0] == EXPECTED


def test_what_detect_wrote_among_labelmes_files_is_left_out_and_counted(images, capsys):
    labelme(images)
    written = images / "a.detections.json"
    written.write_text(json.dumps({"image": "a.jpg", "detections": []}))
    objects, _, _ = imported(images, None, "labelme")
    assert objects == EXPECTED
    assert f"1 file with detections is left out; the first: {written}\n" in capsys.readouterr().err


def test_xanylabeling_writes_four_corners(images):
    labelme(images)
    content = json.loads((images / "a.json").read_text())
    content["shapes"] = [
        {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [9, 2], [9, 12], [1, 12]]},
        {"label": "dog", "shape_type": "rotation", "points": [[20, 25], [25, 20], [30, 25], [25, 30]]},
    ]
    (images / "a.json").write_text(json.dumps(content))
    objects, _, _ = imported(images, None, "labelme")
    assert objects[:2] == [("a.jpg", "cat", [1.0, 2.0, 8.0, 10.0]), ("a.jpg", "dog", [20.0, 20.0, 10.0, 10.0])]


def test_labelme_shapes_of_one_label_and_one_group_are_one_object(images):
    labelme(images)
    content = json.loads((images / "a.json").read_text())
    corners = {"cat": [[1, 2], [9, 12]], "dog": [[20, 20], [30, 30]], "cat again": [[50, 1], [55, 4]]}
    content["shapes"] = [
        {"label": name.split()[0], "shape_type": "rectangle", "points": points, "group_id": group}
        for group in (1, 2)
        for name, points in corners.items()
    ]
    (images / "a.json").write_text(json.dumps(content))
    objects, _, report = imported(images, None, "labelme")
    cat, dog = ("a.jpg", "cat", [1.0, 1.0, 54.0, 11.0]), ("a.jpg", "dog", [20.0, 20.0, 10.0, 10.0])
    assert objects[:-1] == [cat, cat, dog, dog]
    assert report.counts()[Finding("F2", "noticed")] == 2
    assert (
        "a.json: shape 1: 2 shapes are called 'cat' and have the group_id 1"
        in report.first_records()[Finding("F2", "noticed")][0]
    )


def test_labelme_in_a_folder_of_its_own(tmp_path, images):
    (tmp_path / "json").mkdir()
    labelme(tmp_path / "json", "..\\images\\{}.jpg")
    objects, content, _ = imported(tmp_path / "json", images, "labelme")
    assert objects == EXPECTED
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape_type", "cuboid", r"a\.json: shape 1: shape_type is 'cuboid'"),
        ("points", [[1, 2], [3, None]], r"a\.json: shape 1: points are"),
        ("points", [], r"not those of a polygon"),
        ("shape_type", "mask", r"shape 1: points are .* not those of a mask"),
        ("label", " ", r"shape 1: its label is ' '"),
        ("label", None, r"shape 1: its label is None"),
    ],
)
def test_labelme_shapes_that_are_none_are_named(images, field, value, message):
    labelme(images)
    content = json.loads((images / "a.json").read_text())
    content["shapes"][0][field] = value
    (images / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        imported(images, None, "labelme")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "{}", '{"shapes": [], "imagePath": 3}'])
def test_files_that_are_not_labelmes_are_named(images, content):
    (images / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json: ") as caught:
        imported(images, None, "labelme")
    assert caught.value.code == "F1"


def open_images(folder: Path) -> tuple[Path, Path]:
    lines = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"]
    for image, name, (x, y, w, h) in EXPECTED:
        width, height = SIZES[image[0]]
        group = int(name == "dog")
        sides = f"{x / width},{(x + w) / width},{y / height},{(y + h) / height}"
        lines.append(f"{image[0]},xclick,/m/{name},1,{sides},0,0,{group}")
    lines.append("absent,xclick,/m/cat,1,0,1,0,1,0,0,0")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    (folder / "names.csv").write_text('/m/dog,dog\n/m/cat,cat\n/m/cow,"cow, bull"\n')
    return folder / "boxes.csv", folder / "names.csv"


def test_open_images(tmp_path, images):
    boxes, names = open_images(tmp_path)
    objects, content, report = imported(boxes, images, "open_images", class_names=names)
    assert [(file, name, [round(number, 1) for number in box]) for file, name, box in objects] == EXPECTED
    assert [row["iscrowd"] for row in content["annotations"]] == [0, 1, 0]
    assert [row["name"] for row in content["categories"]] == ["dog", "cat", "cow, bull"]
    assert "1 of 3 images left out" in report.first_records()[Finding("F8", "repaired")][0]
    for damage, message in (
        (lambda text: text.replace("XMin", "X"), "has no column XMin"),
        (lambda text: text.replace("/m/dog", "/m/emu"), r"line 3 has the label '/m/emu'"),
        (lambda text: text.replace("xclick,", "", 1), r"line 2 has 10 values, not 11"),
        (lambda text: text.replace("1,0,1,0,1", "1,0,1,1,0"), "line 5: .* is not a box from 0 to 1"),
        (lambda text: text.replace("1,0,1,0,1", "1,0,1,0,nan"), "is not a box from 0 to 1"),
        (lambda text: "\n".join([text.splitlines()[0], text.splitlines()[-1]]), "none of 1 image found in"),
    ):
        damaged = tmp_path / "damaged.csv"
        damaged.write_text(damage(boxes.read_text()))
        with pytest.raises(DataError, match=message):
            imported(damaged, images, "open_images", class_names=names)
    with pytest.raises(ValueError, match="and the CSV file of class names"):
        imported(boxes, images, "open_images")
    twice = next(path for path in images.rglob("*") if path.is_file() and path.stem in boxes.read_text())
    shutil.copyfile(twice, twice.with_suffix(".jpeg"))
    with pytest.raises(DataError, match=rf"image {twice.stem} may be .* or .*; remove one of them") as stopped:
        imported(boxes, images, "open_images", class_names=names)
    assert stopped.value.code == "F2"


def test_boxes_of_an_image_of_open_images_that_cannot_be_read_are_counted(tmp_path, images):
    boxes, names = open_images(tmp_path)
    (images / "a.jpg").write_bytes(b"no image")
    objects, content, report = imported(boxes, images, "open_images", class_names=names)
    assert [(file, name) for file, name, _ in objects] == [("b.jpg", "cat")]
    assert [image["file_name"] for image in content["images"]] == ["b.jpg"]
    assert (report.num_used("box"), report.num_seen("box")) == (1, 3)
    assert report.num_skipped("F9") == 1


def test_a_large_file_of_open_images_is_not_held_in_memory(tmp_path, images):
    boxes, names = open_images(tmp_path)

    def peak() -> int:
        tracemalloc.start()
        try:
            assert len(imported(boxes, images, "open_images", class_names=names)[0]) == 3
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    imported(boxes, images, "open_images", class_names=names)  # so that modules imported by the first call do not count
    of_few = peak()
    with boxes.open("a") as file:
        file.write("absent,xclick,/m/cat,1,0,1,0,1,0,0,0\n" * 3_000)
    assert peak() < of_few + boxes.stat().st_size / 2


def test_files_of_open_images_that_are_not_utf8_or_no_csv_are_named(tmp_path, images):
    boxes, names = open_images(tmp_path)
    content = boxes.read_bytes()
    boxes.write_bytes(b"\xef\xbb\xbf" + content)
    assert len(imported(boxes, images, "open_images", class_names=names)[0]) == 3
    for damaged, message in (
        (content + b"\xff\n", "invalid UTF-8 shortly after line"),
        (content + b'"a"b', "6 is not valid CSV"),
    ):
        boxes.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"boxes\.csv: .*{message}") as caught:
            imported(boxes, images, "open_images", class_names=names)
        assert caught.value.code == "F1"
    with pytest.raises(DataError, match=r"none\.csv: cannot be read \(No such file"):
        imported(tmp_path / "none.csv", images, "open_images", class_names=names)


def test_yolo_and_voc(tmp_path, images):
    (tmp_path / "labels").mkdir()
    (tmp_path / "Annotations").mkdir()
    for name, (width, height) in SIZES.items():
        rows, items = [], ""
        for image, label, (x, y, w, h) in EXPECTED:
            if image[0] == name:
                class_id = ["dog", "cat"].index(label)
                rows.append(f"{class_id} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}")
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
                items += f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
        (tmp_path / "labels" / f"{name}.txt").write_text("\n".join(rows))
        xml = f"<annotation><filename>{name}.jpg</filename>{items}</annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [dog, cat]\n")
    for format, annotations in (("yolo", tmp_path / "data.yaml"), ("voc", tmp_path / "Annotations")):
        objects, _, _ = imported(annotations, None if format == "yolo" else images, format)  # type: ignore[arg-type]
        assert [(file, name, [round(number, 1) for number in box]) for file, name, box in objects] == EXPECTED


def test_the_tool_writes_what_training_reads_as_it_is_and_changes_nothing(tmp_path, images):
    labelme(images)
    before = {path: path.read_bytes() for path in images.iterdir()}
    output = tmp_path / "mine" / "train.json"
    arguments = ("labelme", "--annotations", images, "--output", output)
    done = run_tool("tools/import_boxes.py", *arguments)
    assert f"{output}: 2 images, 3 annotations, 2 categories; file names are relative to {images}" in done.stdout
    assert json.loads(output.with_name("train.json.report.json").read_text())["repaired_by_code"] == {"F5": 1}
    assert {path: path.read_bytes() for path in images.iterdir()} == before
    report = DataReport()
    index = load_annotations(output, images, format="coco", report=report, with_truth=True)
    assert report.counts() == {}
    assert len(index.boxes.values) == 3
    assert "exists; give another name" in run_tool("tools/import_boxes.py", *arguments, expect=2).stderr


def test_an_option_that_a_format_lacks_is_refused(images):
    labelme(images)
    with pytest.raises(ValueError, match=r"the option xyxy cannot be used with format labelme, only with coco$"):
        imported(images, None, "labelme", xyxy=True)


@pytest.mark.parametrize(
    ("format", "ending", "kind"), [("coco", "json", "a JSON file"), ("cvat", "xml", "CVAT's XML file")]
)
def test_a_folder_in_place_of_a_file_is_told_of_the_files_in_it(format, ending, kind, images):
    with pytest.raises(DataError, match=f"images is a folder; give {kind}; see"):
        read_folder(images, format)
    (images / "below").mkdir()
    file = images / "below" / f"annotations.{ending}"
    file.touch()
    with pytest.raises(DataError, match=f"is a folder; give {kind}; it contains {file}"):
        read_folder(images, format)


def read_folder(folder: Path, format: ImportFormatName) -> None:
    """Read a folder as `ovd check` reads COCO's form and `ovd import-boxes` the others."""
    if format == "coco":
        load_annotations(folder, folder, format="coco", report=DataReport())
    else:
        import_boxes(folder, folder, format, DataReport())


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_read(tmp_path, images, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"the folder of .*mine/train\.json cannot be written to"):
        import_into_file(
            tmp_path / "gone", images, "coco", tmp_path / "mine" / "train.json", options=NO_OPTIONS,
            crowds_as_objects=False,
        )  # fmt: skip
