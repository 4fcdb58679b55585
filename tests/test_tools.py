"""The tools as a user calls them, on a small hand-made data set in plain COCO JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from real_layouts import voc_object, voc_xml, yolo_row
from scripts import run_tool

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def custom_data(tmp_path_factory) -> Path:
    """Folder of non-square pictures of colored squares; ids with gaps, a crowd, an image without objects."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in (3, 7, 8, 20, 21, 40):
        height, width = (90, 140) if image_id % 2 else (120, 80)
        pixels = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
        if image_id != 20:
            x, y, side = int(rng.integers(0, 40)), int(rng.integers(0, 50)), int(rng.integers(24, 38))
            category = int(rng.choice([5, 11]))
            pixels[y : y + side, x : x + side] = (220, 30, 30) if category == 5 else (30, 30, 220)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0,
                 "bbox": [x, y, side, side]}
            )  # fmt: skip
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        Image.fromarray(pixels).save(folder / "photos" / f"{image_id}.png")
    annotations.append(
        {"id": 99, "image_id": 7, "category_id": 11, "iscrowd": 1, "bbox": [90, 5, 40, 40], "area": 1600,
         "segmentation": {"counts": [0, 1], "size": [90, 140]}}
    )  # fmt: skip
    categories = [{"id": 11, "name": "blue tile"}, {"id": 5, "name": "red tile"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(custom_data) -> Path:
    run = custom_data / "run"
    run_tool(
        "tools/train.py", "configs/custom_coco.yaml",
        f"data.source.train_annotations={custom_data}/boxes.json", f"data.source.train_images={custom_data}/photos",
        f"data.source.val_annotations={custom_data}/boxes.json", f"data.source.val_images={custom_data}/photos",
        f"output={run}", f"bank.cache={custom_data}/banks", "init_from=null", "train.steps=3", "train.warmup_steps=1",
        "train.batch_size=2", "data.workers=0", "data.size=96", "detector.channels=32", "detector.num_convs=1",
    )  # fmt: skip
    return run


def test_custom_coco_data_trains_and_evaluates(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert {"AP", "AP50", "AR100"} <= metrics.keys()
    report = json.loads((trained / "data_report.json").read_text())
    assert report["used"]["sample"] == 6


def test_eval_of_a_run_on_a_file_equals_its_own_results_file(trained, custom_data, tmp_path):
    run_tool(
        "tools/eval.py", trained, "--format", "coco", "--annotations", custom_data / "boxes.json",
        "--images", custom_data / "photos", "--output", tmp_path / "a",
    )  # fmt: skip
    run_tool(
        "tools/eval.py", "--results", tmp_path / "a" / "results.json", "--format", "coco",
        "--annotations", custom_data / "boxes.json", "--engine", "official", "--output", tmp_path / "b",
    )  # fmt: skip
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in "ab")
    assert one == pytest.approx(other, abs=1e-6)


def write_voc(data: Path) -> tuple[str, ...]:
    """Write the small data set as VOC, and return its paths as arguments of a tool."""
    content = json.loads((data / "boxes.json").read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    (data / "Annotations").mkdir(exist_ok=True)
    for image in content["images"]:
        own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        objects = [voc_object(names[row["category_id"]], row["bbox"], difficult=row["iscrowd"] == 1) for row in own]
        xml = voc_xml(image["file_name"], (image["height"], image["width"]), objects)
        (data / "Annotations" / f"{image['id']:03}.xml").write_text(xml)
    return "--annotations", str(data / "Annotations"), "--images", str(data / "photos")


def write_yolo(data: Path) -> tuple[str, ...]:
    """Write the same as YOLO, with labels beside the images and without crowd regions; return its paths as arguments of
    a tool."""
    content = json.loads((data / "boxes.json").read_text())
    for image in content["images"]:
        own = [row for row in content["annotations"] if row["image_id"] == image["id"] and not row["iscrowd"]]
        size = (image["height"], image["width"])
        rows = [yolo_row({11: 0, 5: 1}[row["category_id"]], row["bbox"], size) for row in own]
        (data / "photos" / f"{image['id']}.txt").write_text("".join(rows))
    text = yaml.safe_dump({"train": "photos", "val": "photos", "names": ["blue tile", "red tile"]})
    (data / "data.yaml").write_text(text)
    return "--annotations", str(data / "data.yaml"), "--images", str(data)


@pytest.mark.parametrize(
    ("format", "write"), [("voc", write_voc), pytest.param("yolo", write_yolo, marks=pytest.mark.slow)]
)
def test_voc_and_yolo_are_checked_trained_on_and_evaluated(format, write, custom_data, tmp_path):
    where = write(custom_data)
    checked = run_tool("tools/check_data.py", format, *where).stdout
    assert "6 images, 80 to 140 px per side" in checked
    assert "5 objects and 1 crowd" in checked if format == "voc" else "5 objects and 0 crowd" in checked
    assert "no faulty records" in checked
    run = tmp_path / "run"
    _, annotations, _, images = where
    run_tool(
        "tools/train.py", "configs/custom_coco.yaml", f"data.source.format={format}",
        f"data.source.train_annotations={annotations}", f"data.source.train_images={images}",
        f"data.source.val_annotations={annotations}", f"output={run}", f"bank.cache={custom_data}/banks",
        "init_from=null", "train.steps=2", "train.warmup_steps=1", "train.batch_size=2", "data.workers=0",
        "data.size=96", "detector.channels=32", "detector.num_convs=1",
    )  # fmt: skip
    trained = json.loads((run / "metrics.json").read_text())["metrics"]
    run_tool("tools/eval.py", run, "--format", format, *where, "--output", tmp_path / "a")
    run_tool(
        "tools/eval.py", "--results", tmp_path / "a" / "results.json", "--format", format, *where,
        "--engine", "official", "--output", tmp_path / "b",
    )  # fmt: skip
    for name in "ab":
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
        assert metrics == pytest.approx(trained, abs=1e-6)


def test_demo_takes_any_words_and_writes_picture_and_json(trained, custom_data, tmp_path):
    image = custom_data / "photos" / "3.png"
    result = run_tool(
        "tools/demo.py", image, "--classes", "umbrella, red tile, naïve café", "--run", trained,
        "--threshold", "0", "--top", "5", "--overlapping", "--output", tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "3.detections.json").read_text())["detections"]
    assert len(found) == 5
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    for row in found:
        x0, y0, x1, y1 = row["box_xyxy"]
        assert 0 <= x0 < x1 <= 140
        assert 0 <= y0 < y1 <= 90
        assert row["class"] in {"umbrella", "red tile", "naïve café"}
    with Image.open(tmp_path / "3.detections.jpg") as picture:
        assert picture.width >= 384
    assert "5 objects" in result.stdout
    result = run_tool(
        "tools/demo.py", image, "--classes", "umbrella:1.0, red tile, 3:4 tile", "--run", trained, "--threshold", "0",
        "--overlapping", "--output", tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "3.detections.json").read_text())["detections"]
    assert {row["class"] for row in found} == {"red tile", "3:4 tile"}
    assert "score of at least 0.00, or the minimum score after its name" in result.stdout


AT_A_RUN = ("--run", "configs")
"""Arguments with an existing folder as run; its contents are checked after all other arguments."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tools/demo.py", *AT_A_RUN, "no.png", "--classes", " , "), "has no class name"),
        (
            ("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "umbrella, anchor:1.5"),
            "'anchor:1.5': write it as NAME:0.8",
        ),
        (("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "a", "--track"), "--track needs a video"),
        (("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "a", "--nearest"), "--nearest needs --expert"),
        (
            ("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "a", "--prompt", "b=none.png"),
            "none.png: file is missing",
        ),
        (
            ("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "a", "--size", "-5"),
            "'-5' is not a whole number of at least 1",
        ),
        (
            ("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "a", "--top", "-1"),
            "'-1' is not a whole number of at least 1",
        ),
        (
            ("tools/demo.py", *AT_A_RUN, "no.png", "--classes", "a", "--threshold", "nan"),
            "'nan' is not a number from 0 to 1",
        ),
        (("tools/pseudo_label.py", "runs/none-such", "--size", "-5"), "'-5' is not a whole number of at least 1"),
        (("tools/eval.py", "runs/none-such", "--size", "0"), "'0' is not a whole number of at least 1"),
        (("tools/eval.py", "configs", "--same-place", "both"), "--same-place needs --expert"),
        (("tools/eval.py", "runs/none-such"), "runs/none-such does not exist; give the folder of a run"),
        (("tools/check_data.py", "coco", "--annotations", "x", "--no-images", "--split", "val"), "option split"),
        (("tools/make_world.py", "--foreign", "shapes", "--parts", "val"), "--parts are those of the world"),
        (("tools/check_data.py", "yolo", "--annotations", "none.yaml"), "error[F1]: none.yaml: cannot be read"),
        (("tools/train.py", "configs/none-such.yaml"), "cannot be read"),
        (("tools/train.py", "configs/quickstart.yaml", "train.stepz=3"), "did you mean train.steps?"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message):
    result = run_tool(*arguments, expect=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


TOOLS = {path.name for path in (ROOT / "tools").glob("*.py") if "The same as" not in path.read_text()}


@pytest.mark.parametrize("tool", sorted({"train.py", *TOOLS}))
def test_help_says_what_a_tool_does(tool):
    assert "usage:" in run_tool(f"tools/{tool}", "--help").stdout
