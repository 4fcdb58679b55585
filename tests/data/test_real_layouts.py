"""Miniatures of real data sets in their layouts: checked by the tool, trained on, evaluated."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import real_layouts
from PIL import Image
from real_layouts import Layout
from scripts import run_tool

from ovd.build.data import load_evaluation_index, load_training_index
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.data.annotations import load_annotations
from ovd.data.check import check_images, check_pairs, class_counts, describe
from ovd.data.coco_zero_shot import BASE, NOVEL
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.tsv import read_tsv
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataReport, Finding
from ovd.jobs.train import train_from_config

LAYOUTS: dict[str, Callable[[Path, Path], Layout]] = {
    "lvis": real_layouts.lvis,
    "coco": real_layouts.coco,
    "coco_zero_shot": lambda world, folder: real_layouts.coco(world, folder, "coco_zero_shot"),
    "objects365": real_layouts.objects365,
    "voc": real_layouts.voc,
    "yolo": real_layouts.yolo,
    "objects365_v1": lambda world, folder: real_layouts.objects365(world, folder, first_version=True),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, miniature_world, tmp_path_factory) -> Layout:
    return LAYOUTS[request.param](miniature_world, tmp_path_factory.mktemp(request.param))


def train_config(layout: Layout, output: Path, **train) -> TrainConfig:
    source = {name: str(value) for name, value in vars(layout).items()}
    values = {
        "output": str(output),
        "bank": {"cache": str(output.parent / "banks"), "templates": "none"},
        "detector": {"channels": 32, "num_convs": 1},
        "data": {
            "source": {"kind": "files", **source}, "size": 96, "workers": 0,
            "classes": "base" if layout.format in ("lvis", "coco_zero_shot") else "all",
        },
        "train": {"steps": 20, "batch_size": 2, "sampled_classes": 10, "warmup_steps": 2, **train},
    }  # fmt: skip
    return parse_config(values, TrainConfig, "test")


def test_the_check_passes_and_finds_a_damaged_image(layout):
    check = ("tools/check_data.py", layout.format, "--annotations", layout.train_annotations)
    output = run_tool(*check, "--images", layout.train_images).stdout
    found = {"zhiyuan_objv2_train.json": "F8 repaired: 1", "data.yaml": "F1 noticed: 1"}  # an image has no label file
    assert found.get(layout.train_annotations.name, "no faulty records") in output
    index = load_annotations(layout.train_annotations, layout.train_images, format=layout.format, report=DataReport())
    path = index.encoded(len(index) - 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        output = run_tool(*check, "--images", layout.train_images, expect=2).stdout
        assert "F9 skipped: 1" in output
        assert str(path) in output
        run_tool(*check, "--no-images")
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_twenty_steps_train_and_the_validation_set_is_judged(layout, tmp_path):
    config = train_config(layout, tmp_path / "run")
    metrics = train_from_config(config)
    assert {"AP", "AP50"} <= metrics.keys()
    assert ("AP50_novel" in metrics) == (layout.format == "coco_zero_shot")
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["used"]["sample"] == 40
    assert report["skipped"]["sample"] == 0


def test_lvis_val_lies_in_both_folders(miniature_world, tmp_path):
    layout = real_layouts.lvis(miniature_world, tmp_path)
    index = load_annotations(layout.val_annotations, layout.val_images, format="lvis", report=DataReport())
    assert {file.split("/")[0] for file in index.image_files} == {"train2017", "val2017"}
    assert all(index.encoded(image).is_file() for image in range(len(index)))


def test_coco_zero_shot_trains_on_base_classes_and_judges_both(miniature_world, tmp_path):
    layout = real_layouts.coco(miniature_world, tmp_path, "coco_zero_shot")
    training = load_training_index(train_config(layout, tmp_path / "x"), DataReport())
    assert {category.name for category in training.categories} == BASE
    assert all(len(training.boxes[image]) for image in range(len(training)))
    everything = load_annotations(layout.train_annotations, layout.train_images, format="coco", report=DataReport())
    assert len(training) < len(everything)
    names = [everything.categories[row].name for row in everything.classes.values]
    assert len(training.classes.values) == sum(name in BASE for name in names)
    judged = load_evaluation_index(layout.val_annotations, layout.val_images, "coco_zero_shot", report=DataReport())
    assert {category.name for category in judged.categories} == BASE | NOVEL


def test_objects365_names_are_mended_and_the_unreleased_image_left_out(miniature_world, tmp_path):
    layout = real_layouts.objects365(miniature_world, tmp_path)
    report = DataReport()
    index = load_annotations(layout.train_annotations, layout.train_images, format="objects365", report=report)
    assert "Monitor/TV" in {category.name for category in index.categories}
    content = json.loads(layout.train_annotations.read_text())
    assert len(index) == len(content["images"]) - 1
    left_out = content["images"][0]["id"]
    assert len(index.boxes.values) == sum(row["image_id"] != left_out for row in content["annotations"])
    assert report.counts()[Finding("F8", "repaired")] == 1
    assert all(index.encoded(image).is_file() for image in range(len(index)))


def test_names_of_objects365_are_those_of_the_corrected_list(shared_data):
    from ovd.data.formats.objects365 import class_name

    rows = [line.strip().split(",") for line in (shared_data / "Objects365_names_fix.csv").read_text().splitlines()]
    assert len(rows) == 365
    assert [class_name(before) for _, before, _ in rows] == [after.strip() for _, _, after in rows]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("lvis_val_100", "lvis"),
        ("coco_instances_val2014_100", "coco"),
        ("coco_instances_val2014_100", "coco_zero_shot"),
    ],
)
def test_real_files_are_read_record_by_record(shared_data, name, format):
    report = DataReport(stops=False)
    index = load_evaluation_index(shared_data / f"{name}.json", None, format, report=report)
    content = json.loads((shared_data / f"{name}.json").read_text())
    assert report.num_used("box") == len(content["annotations"])
    assert report.counts() == {}
    if format != "coco_zero_shot":
        assert len(index) == len(content["images"]) == 100
    assert f"{len(index):,} images" in describe(index, report, index)


def test_class_counts(miniature_world):
    path = miniature_world / "annotations" / "lvis_val.json"
    index = load_annotations(path, None, format="lvis", report=DataReport())
    content = json.loads(path.read_text())
    counts = class_counts(index)
    assert counts
    for count in counts:
        (category,) = [row for row in content["categories"] if row["name"] == count.name]
        boxes = [row for row in content["annotations"] if row["category_id"] == category["id"]]
        assert (count.objects, count.images) == (len(boxes), len({row["image_id"] for row in boxes}))


def jpeg(tmp_path: Path) -> bytes:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "one.jpg")
    return (tmp_path / "one.jpg").read_bytes()


def test_pairs_are_read_whole(tmp_path):
    image = jpeg(tmp_path)
    pairs = [Pair("a", image, "a red square", {}), Pair("b", image[:-30], "cut", {}), Pair("c", image, "  ", {})]
    write_pair_shards(tmp_path / "shards", pairs, pairs_per_shard=2)
    report = DataReport(stops=False)
    check_pairs(PairShards(tmp_path / "shards"), report)
    assert report.counts() == {("F30", "skipped"): 1, ("F9", "skipped"): 1}
    assert report.num_used() == 1
    told = run_tool("tools/check_data.py", "pairs", "--shards", tmp_path / "shards", expect=2).stdout
    assert "3 pairs in 2 shards" in told


def test_an_image_of_another_size_is_found(miniature_world, tmp_path):
    layout = real_layouts.coco(miniature_world, tmp_path)
    report = DataReport(stops=False)
    index = load_annotations(layout.val_annotations, layout.val_images, format="coco", report=report)
    Image.new("RGB", (20, 10)).save(index.encoded(0))
    index.encoded(1).unlink()
    check_images(index, report)
    assert report.counts() == {("F12", "skipped"): 1, ("F8", "skipped"): 1}


def test_a_tsv_becomes_shards(tmp_path):
    image = jpeg(tmp_path)
    lines = [f"k{number}\ta red square {number}\t{base64.b64encode(image).decode()}" for number in range(5)]
    lines[2] = "k2\tno image here\t!!"
    lines.append("k5\tno ASCII here\tÄÄÄÄ")
    lines[3] = "k3\t \t" + base64.b64encode(image).decode()
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    report = DataReport()
    pairs = list(read_tsv(tmp_path / "pairs.tsv", ["_", "caption", "base64"], None, report))
    assert [(pair.key, pair.caption) for pair in pairs] == [
        ("000000001", "a red square 0"), ("000000002", "a red square 1"), ("000000005", "a red square 4"),
    ]  # fmt: skip
    assert all(pair.image == image for pair in pairs)
    assert report.counts() == {("F30", "skipped"): 1, ("F9", "skipped"): 2}
    write_pair_shards(tmp_path / "shards", pairs, pairs_per_shard=2)
    assert len(PairShards(tmp_path / "shards")) == 3


def test_the_byte_order_mark_of_a_tsv_is_no_part_of_its_first_field(tmp_path):
    jpeg(tmp_path)
    (tmp_path / "pairs.tsv").write_bytes(b"\xef\xbb\xbfone.jpg\tred\r\n")
    (pair,) = read_tsv(tmp_path / "pairs.tsv", ["path", "caption"], tmp_path, DataReport())
    assert pair.caption == "red"
    (tmp_path / "pairs.tsv").write_bytes(b"\xef\xbb\xbfred\tone.jpg\r\n")
    (pair,) = read_tsv(tmp_path / "pairs.tsv", ["caption", "path"], tmp_path, DataReport())
    assert pair.caption == "red"


def test_a_tsv_keeps_keys_and_counts_what_it_cannot_read(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "one.png")
    lines = [f"k{number}\ta key\tone.png".encode() for number in range(60)]
    lines[3] = "k3\tSchlüssel\tone.png".encode("latin-1")
    lines[5] += b"\tand more"
    (tmp_path / "pairs.tsv").write_bytes(b"\n".join(lines) + b"\n")
    report = DataReport()
    pairs = list(read_tsv(tmp_path / "pairs.tsv", ["key", "caption", "path"], tmp_path, report))
    assert [pair.info["key"] for pair in pairs] == [f"k{number}" for number in range(60) if number not in (3, 5)]
    (records,) = report.first_records().values()
    assert [record.partition(": line ")[2] for record in records] == [
        "4: the caption is not UTF-8", "6: 4 fields, but the columns are key,caption,path",
    ]  # fmt: skip


def test_a_tsv_without_a_line_is_no_import(tmp_path):
    (tmp_path / "pairs.tsv").touch()
    pairs = read_tsv(tmp_path / "pairs.tsv", ["path", "caption"], tmp_path, DataReport())
    with pytest.raises(ValueError, match=r"pairs\.tsv has no lines"):
        write_pair_shards(tmp_path / "shards", pairs, pairs_per_shard=3)
    assert not any((tmp_path / "shards").iterdir())


def test_a_tsv_with_paths_and_bad_columns(tmp_path):
    jpeg(tmp_path)
    lines = ["one.jpg\tred", "two.jpg\tmissing", f"{tmp_path}/one.jpg\toutside", "../one.jpg\toutside", "o\0e\tnull"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    report = DataReport()
    (pair,) = read_tsv(tmp_path / "pairs.tsv", ["path", "caption"], tmp_path, report)
    assert pair.caption == "red"
    assert report.counts() == {("F15", "skipped"): 2, ("F8", "skipped"): 1, ("F9", "skipped"): 1}
    for columns in (["caption"], ["caption", "path", "base64"], ["caption", "path", "size"]):
        with pytest.raises(ValueError, match="columns"):
            list(read_tsv(tmp_path / "pairs.tsv", columns, tmp_path, report))
    with pytest.raises(ValueError, match="unknown columns ' path'; allowed are key, caption, path,"):
        list(read_tsv(tmp_path / "pairs.tsv", ["caption", " path"], tmp_path, report))
