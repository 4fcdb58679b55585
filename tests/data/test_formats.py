"""The table of formats, the results of a single reading, and the same boxes written in three formats."""

import builtins
import io
import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import real_layouts
import torch
import yaml
from cores import THREADS
from PIL import Image
from real_layouts import voc_object, voc_xml, yolo_row

from ovd.build.batches import training_batches
from ovd.build.data import load_evaluation_index, load_training_index
from ovd.choices import DataFormatName
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.data.annotations import load_annotations, load_truth
from ovd.data.check import check_images
from ovd.data.formats.options import FormatOptions
from ovd.data.formats.supported import FORMATS
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.engine.notes import NO_SAMPLES
from ovd.evaluation.run import build_box_evaluator, evaluate_results_file
from ovd.jobs.train import train_from_config
from ovd.structures import Detections

NAMES = ("cat & dog", "red car", "tree")
SIZES = ((60, 90), (120, 64), (48, 48), (75, 100))


@dataclass(frozen=True)
class Box:
    """A true box, xywh in pixels; `row` is the row of its class."""

    image: int
    row: int
    xywh: list[float]
    crowd: bool = False


BOXES = (
    Box(0, 1, [10, 5, 30, 20]),
    Box(0, 0, [50.5, 20.25, 39.5, 39.75]),
    Box(1, 2, [0, 0, 64, 120]),
    Box(1, 0, [3, 100, 8, 9]),
    Box(3, 1, [20, 30, 40, 22]),
    Box(3, 1, [70, 10, 30, 60]),
)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Folder of non-square images whose file names sort in their order."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for image, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{image}.png")
    return folder


def write_coco(pictures: Path, boxes: tuple[Box, ...]) -> Path:
    path = pictures.parent / "coco.json"
    images = [
        {"id": image, "file_name": f"{image}.png", "height": size[0], "width": size[1]}
        for image, size in enumerate(SIZES)
    ]
    annotations = [
        {"id": number, "image_id": box.image, "category_id": box.row, "bbox": box.xywh, "iscrowd": int(box.crowd)}
        for number, box in enumerate(boxes)
    ]
    categories = [{"id": row, "name": name} for row, name in enumerate(NAMES)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_voc(pictures: Path, boxes: tuple[Box, ...]) -> Path:
    folder = pictures.parent / "Annotations"
    folder.mkdir(exist_ok=True)
    for image, size in enumerate(SIZES):
        objects = [voc_object(NAMES[b.row], b.xywh, difficult=b.crowd) for b in boxes if b.image == image]
        (folder / f"{image}.xml").write_text(voc_xml(f"{image}.png", size, objects))
    return folder


def write_yolo(pictures: Path, boxes: tuple[Box, ...]) -> Path:
    labels = pictures.parent / "labels"
    labels.mkdir(exist_ok=True)
    for image, size in enumerate(SIZES):
        rows = [yolo_row(b.row, b.xywh, size) for b in boxes if b.image == image]
        (labels / f"{image}.txt").write_text("".join(rows))
    path = pictures.parent / "data.yaml"
    path.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": list(NAMES)}))
    return path


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
TOLERANCE_PX = {"coco": 0.0, "voc": 1e-5, "yolo": 2e-4}


def load(format: DataFormatName, path: Path, pictures: Path, **options) -> AnnotationIndex:
    images = pictures.parent if format == "yolo" else pictures
    return load_annotations(path, images, format=format, report=DataReport(), **options)


def test_the_table_has_a_record_for_each_name():
    assert set(get_args(DataFormatName)) == FORMATS.keys()
    assert [name for name, record in FORMATS.items() if record.is_federated] == ["lvis"]
    assert [name for name, record in FORMATS.items() if record.groups] == ["coco_zero_shot"]
    assert [name for name, record in FORMATS.items() if record.base_split] == ["lvis", "coco_zero_shot"]
    options = {field for record in FORMATS.values() for field in record.options}
    only_imported = {"attribute"}  # VIA's option, which only imports have
    assert options | only_imported == {field.name for field in fields(FormatOptions)}


@pytest.mark.parametrize(
    ("format", "options", "owner"),
    [
        ("lvis", FormatOptions(split="val"), "split cannot be used with format .*, only with yolo"),
        ("voc", FormatOptions(split="val"), "split cannot be used with format .*, only with yolo"),
        ("coco", FormatOptions(zero_based=True), "zero_based cannot be used with format .*, only with voc"),
        ("yolo", FormatOptions(class_names=Path("x")), "class_names cannot be used with format .*, only with voc"),
    ],
)
def test_an_option_of_another_format_is_refused(format, options, owner):
    with pytest.raises(ValueError, match=f"the option {owner}"):
        load_annotations(Path("x"), None, format=format, report=DataReport(), options=options)


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_the_same_boxes_give_the_same_index(format, pictures):
    coco = load("coco", write_coco(pictures, BOXES), pictures)
    other = load(format, WRITERS[format](pictures, BOXES), pictures)
    assert other.format == format
    assert other.categories == coco.categories
    assert [index.encoded(1) for index in (coco, other)] == [pictures / "1.png"] * 2
    for name in ("image_ids", "image_sizes"):
        np.testing.assert_array_equal(getattr(other, name), getattr(coco, name))
    for name in ("boxes", "classes", "crowd_boxes", "negative_classes", "not_exhaustive_classes"):
        np.testing.assert_array_equal(getattr(other, name).offsets, getattr(coco, name).offsets)
        np.testing.assert_allclose(
            getattr(other, name).values, getattr(coco, name).values, rtol=0, atol=TOLERANCE_PX[format]
        )
    report = DataReport()
    check_images(other, report)
    assert (report.counts(), report.num_used()) == ({}, len(SIZES))


def test_a_difficult_object_of_voc_is_a_crowd_region(pictures):
    boxes = (*BOXES, Box(2, 2, [5, 6, 20, 30], crowd=True))
    coco = load("coco", write_coco(pictures, boxes), pictures, with_truth=True)
    voc = load("voc", write_voc(pictures, boxes), pictures, with_truth=True)
    assert voc.crowd_boxes[2].tolist() == [[5, 6, 25, 36]]
    assert voc.categories == coco.categories
    assert coco.truth is not None
    assert voc.truth is not None
    # The two files list the objects in different orders: VOC's are sorted by image.
    by_image = np.argsort(coco.truth.image_ids, kind="stable")
    np.testing.assert_array_equal(voc.truth.crowd, coco.truth.crowd[by_image])
    np.testing.assert_allclose(voc.truth.boxes_xywh, coco.truth.boxes_xywh[by_image], atol=1e-5)


def source(format: DataFormatName, path: Path, pictures: Path) -> dict[str, str]:
    folder = str(pictures.parent if format == "yolo" else pictures)
    return {
        "kind": "files", "format": format, "train_annotations": str(path), "train_images": folder,
        "val_annotations": str(path), "val_images": folder,
    }  # fmt: skip


def tiny_config(data_source: dict[str, str], output: Path, **train) -> TrainConfig:
    values = {
        "output": str(output),
        "bank": {"cache": str(output.parent / "banks"), "templates": "none"},
        "detector": {"channels": 32, "num_convs": 1},
        "data": {"source": data_source, "size": 64, "workers": 0, "classes": "all"},
        "train": {"steps": 2, "batch_size": 2, "sampled_classes": 3, "warmup_steps": 1, "threads": THREADS, **train},
    }
    return parse_config(values, TrainConfig, "test")


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_the_same_boxes_give_the_same_training_batches(format, pictures, tmp_path):
    batches = []
    for name in ("coco", format):
        config = tiny_config(source(name, WRITERS[name](pictures, BOXES), pictures), tmp_path / "run")
        index = load_training_index(config, DataReport())
        batches.append(list(training_batches(config, index, first_samples=NO_SAMPLES, size_divisor=32)(0)))
    assert len(batches[0]) == 2
    for coco, other in zip(*batches, strict=True):
        assert other.image_ids == coco.image_ids
        torch.testing.assert_close(other.images, coco.images, rtol=0, atol=0)
        torch.testing.assert_close(other.sizes, coco.sizes)
        for ours, theirs in zip(other.targets, coco.targets, strict=True):
            for field, tensor in vars(theirs).items():
                torch.testing.assert_close(vars(ours)[field], tensor, rtol=0, atol=2 * TOLERANCE_PX[format])


@pytest.mark.parametrize("format", ["voc", "yolo"])
@pytest.mark.parametrize("engine", ["hotcoco", "official"])
def test_the_same_boxes_give_the_same_metrics(format, engine, pictures):
    metrics = []
    for name in ("coco", format):
        path = WRITERS[name](pictures, BOXES)
        index = load_evaluation_index(path, pictures.parent if name == "yolo" else pictures, name, report=DataReport())
        assert index.truth is not None
        evaluator = build_box_evaluator(index.truth, name, (2, 0, 1), engine=engine)
        rng = np.random.default_rng(0)
        for image in range(len(SIZES)):
            own = [box for box in BOXES if box.image == image]
            boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (box.xywh for box in own)]).reshape(-1, 4)
            moved = boxes + torch.from_numpy(rng.normal(0, 2, boxes.shape)).float()
            classes = torch.tensor([(2, 0, 1).index(box.row) for box in own], dtype=torch.int64)
            evaluator.update(image, Detections(moved, torch.from_numpy(rng.random(len(own))).float(), classes))
        metrics.append(evaluator.compute())
    assert 0 < metrics[0]["AP"] < 1
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-12)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_a_results_file_is_evaluated_in_every_format(format, pictures, tmp_path):
    records = [{"image_id": box.image, "category_id": box.row, "bbox": box.xywh, "score": 0.5} for box in BOXES]
    (tmp_path / "results.json").write_text(json.dumps(records))
    path = WRITERS[format](pictures, BOXES)
    if format != "yolo":  # YOLO's boxes are fractions of the sizes in the image files
        for image in pictures.iterdir():
            image.unlink()
    metrics = evaluate_results_file(path, tmp_path / "results.json", format)
    assert metrics["AP"] == pytest.approx(1)


def test_one_reading_gives_what_two_readings_give(pictures):
    boxes = (*BOXES, Box(2, 2, [-5, 6, 20, 90]), Box(0, 0, [7, 7, 0.5, 9]), Box(2, 1, [1, 2, 9, 9], crowd=True))
    path = write_coco(pictures, boxes)
    index = load("coco", path, pictures, with_truth=True)
    without = load("coco", path, pictures)
    assert without.truth is None
    assert index.fingerprint() == without.fingerprint() == replace(index, truth=None).fingerprint()
    assert index.truth is not None
    assert index.truth.as_dataset() == load_truth(path, format="coco").as_dataset()
    # The truth has the boxes as the file has them, neither clamped nor filtered.
    assert index.truth.boxes_xywh.tolist() == [box.xywh for box in boxes]
    part = index.take(np.array([1]))
    assert part.truth is index.truth
    assert len(part) == 1


def test_a_truth_needs_less_of_a_file_than_an_index(tmp_path):
    content = {
        "images": [{"id": 1, "neg_category_ids": [77], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4e10], "area": 12}],
        "categories": [{"id": 2, "name": "cup"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    for format in ("lvis", "coco", "objects365"):
        assert load_truth(path, format=format).boxes_xywh.tolist() == [[1, 2, 3, 4e10]]
        with pytest.raises(ValueError, match=r"truth\.json: "):
            load_annotations(path, None, format=format, report=DataReport())


def test_a_truth_of_objects365_keeps_the_images_that_no_archive_holds(tmp_path):
    names = ("images/v2/patch16/objects365_v2_00908726.jpg", "images/v1/patch3/objects365_v1_00000001.jpg")
    images = [{"id": 5 - n, "file_name": name, "height": 9, "width": 9} for n, name in enumerate(names)]
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "bbox": [1, 2, 3, n + 2]} for n, image in enumerate((4, 5, 4))
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Bakset"}]}
    path = tmp_path / "o365.json"
    path.write_text(json.dumps(content))
    report = DataReport()
    index = load_annotations(path, None, format="objects365", report=report, with_truth=True)
    assert index.image_ids.tolist() == [4]
    assert index.image_files == ("patch3/objects365_v1_00000001.jpg",)
    assert index.boxes[0].tolist() == [[1, 2, 4, 4], [1, 2, 4, 6]]
    assert [category.name for category in index.categories] == ["Basket"]
    assert report.counts() == {("F8", "repaired"): 1}
    assert index.truth is not None
    assert [image.id for image in index.truth.images] == [4, 5]
    assert index.truth.image_ids.tolist() == [4, 5, 4]


@pytest.mark.parametrize(("folder", "options"), [("train", "sizes"), ("train", "none"), (".", "names")])
def test_images_of_objects365_are_looked_for_where_its_archives_put_them(tmp_path, folder, options):
    """Images are found in the folders of Objects365's archives if sizes are read from image headers, because they are
    missing or not trusted, and by base name one folder above."""
    (tmp_path / "train" / "patch8").mkdir(parents=True)
    images = []
    for number in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / "train" / "patch8" / f"objects365_v1_{number}.jpg")
        size = {} if options == "none" else {"height": 30, "width": 40}
        images.append({"id": number, "file_name": f"images/v1/patch8/objects365_v1_{number}.jpg", **size})
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    path = tmp_path / "o365.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "Basket"}]}))
    chosen = FormatOptions(sizes_from_images=options == "sizes", by_base_name=options == "names")
    index = load_annotations(path, tmp_path / folder, format="objects365", options=chosen)
    assert all(index.encoded(image).is_file() for image in range(3))
    assert index.image_sizes.tolist() == [[30, 40]] * 3


@pytest.fixture
def opened(monkeypatch) -> Counter[str]:
    """Count how often each file is opened from here on."""
    counts: Counter[str] = Counter()

    def counting(open_file):
        def count(file, *arguments, **keywords):
            counts[str(file)] += 1
            return open_file(file, *arguments, **keywords)

        return count

    monkeypatch.setattr(builtins, "open", counting(builtins.open))
    monkeypatch.setattr(io, "open", counting(io.open))
    return counts


def test_a_run_with_two_evaluations_reads_its_validation_file_once(miniature_world, tmp_path, opened, capsys):
    layout = real_layouts.lvis(miniature_world, tmp_path)
    opened.clear()
    config = tiny_config(
        {"kind": "files", **{name: str(value) for name, value in vars(layout).items()}}, tmp_path / "run",
        steps=2, eval_every=1,
    )  # fmt: skip
    metrics = train_from_config(config)
    assert capsys.readouterr().out.count("LVIS box AP, fixed") == 2
    assert "AP_fixed" in metrics
    assert opened[str(layout.val_annotations)] == 1
    assert opened[str(layout.train_annotations)] == 1


def test_an_evaluation_job_reads_its_file_once(pictures, tmp_path, opened):
    from ovd.build.trained import load_detector
    from ovd.jobs.evaluate import evaluate_run

    path = write_coco(pictures, BOXES)
    config = tiny_config(source("coco", path, pictures), tmp_path / "run", steps=1)
    train_from_config(config, evaluate=False)
    opened.clear()
    evaluation = evaluate_run(load_detector(tmp_path / "run"), output=tmp_path / "eval")
    assert "AP" in evaluation.metrics
    assert opened[str(path)] == 1
