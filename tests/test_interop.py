"""Detections converted for other packages and read back by them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ovd.onnx.session import Detections as OnnxDetections
from ovd.structures import Detections

FOUND = Detections(
    torch.tensor([[10.0, 20.0, 50.0, 44.0], [0.5, 0.0, 30.0, 90.5]]),
    torch.tensor([0.9, 0.25]),
    torch.tensor([2, 0]),
)
NAMES = ["anchor", "umbrella", "coffee cup"]


def test_number_of_detections():
    """`len` is the number of detections, as for detectron2's Instances and supervision's Detections."""
    assert len(FOUND) == 2 == len(FOUND.boxes)
    assert len(FOUND.take(FOUND.scores > 0.5)) == 1
    assert len(Detections.empty()) == 0
    assert not Detections.empty()
    boxes, scores, classes = (values.numpy() for values in (FOUND.boxes, FOUND.scores, FOUND.classes))
    assert len(OnnxDetections(boxes, scores, classes)) == 2


def test_supervision():
    pytest.importorskip("supervision", reason="the package is not installed")
    given: Any = FOUND.to_supervision(NAMES)
    assert np.array_equal(given.xyxy, FOUND.boxes.numpy())
    assert given.confidence.tolist() == pytest.approx([0.9, 0.25])
    assert given["class_name"].tolist() == ["coffee cup", "anchor"]
    assert given[given.confidence > 0.5].class_id.tolist() == [2]
    assert given.area.tolist() == pytest.approx([40 * 24, 29.5 * 90.5])
    for names in (None, NAMES):
        assert len(Detections.empty().to_supervision(names)) == 0


def test_results_in_cocos_form_are_read_by_pycocotools(tmp_path, capsys):
    truth = {
        "images": [{"id": 7, "height": 100, "width": 100, "file_name": "a.jpg"}],
        "categories": [{"id": id, "name": name} for id, name in zip((3, 5, 90), NAMES, strict=True)],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(FOUND.to_coco(7, (3, 5, 90))))
    read = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "found.json"))
    rows = read.loadAnns(read.getAnnIds(imgIds=[7]))
    assert [row["category_id"] for row in rows] == [90, 3]
    assert rows[0]["bbox"] == [10, 20, 40, 24]
    assert [row["category_id"] for row in FOUND.to_coco(7)] == [3, 1]
    assert Detections.empty().to_coco(7) == []


@pytest.fixture
def boxes_file(tmp_path) -> Path:
    """A file as `ovd detect --write coco` writes it, beside its image."""
    content = {
        "images": [{"id": 7, "height": 100, "width": 100, "file_name": "a.jpg"}],
        "categories": [{"id": row + 1, "name": name} for row, name in enumerate(NAMES)],
        "annotations": [
            {"id": number, "area": 1.0, "iscrowd": 0, **row} for number, row in enumerate(FOUND.to_coco(7))
        ],
    }
    Image.new("RGB", (100, 100)).save(tmp_path / "a.jpg")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path / "boxes.json"


def test_results_in_cocos_form_are_read_by_supervision(boxes_file):
    supervision = pytest.importorskip("supervision", reason="the package is not installed")
    read = supervision.DetectionDataset.from_coco(str(boxes_file.parent), str(boxes_file))
    assert read.classes == NAMES
    ((_, _, found),) = list(read)
    assert np.allclose(found.xyxy, FOUND.boxes.numpy())
    assert found.class_id.tolist() == [2, 0]


def test_results_in_cocos_form_are_read_by_fiftyone(boxes_file):
    """FiftyOne reads results in COCO's form; only its importer is tested, since a dataset needs a running database."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason="the package is not installed")
    with coco.COCODetectionDatasetImporter(data_path=str(boxes_file.parent), labels_path=str(boxes_file)) as importer:
        ((path, _, labels),) = list(importer)
    assert Path(path).name == "a.jpg"
    found = [(row.label, row.confidence, row.bounding_box) for row in labels["detections"].detections]
    assert [label for label, _, _ in found] == ["coffee cup", "anchor"]
    assert [score for _, score, _ in found] == pytest.approx([0.9, 0.25])
    assert found[0][2] == pytest.approx([0.1, 0.2, 0.4, 0.24])


def test_torchvisions_dictionary_goes_into_torchvisions_nms():
    from torchvision.ops import batched_nms

    given = FOUND.to_torchvision()
    assert batched_nms(given["boxes"], given["scores"], given["labels"], 0.5).tolist() == [0, 1]
    assert set(given) == {"boxes", "labels", "scores"}


def test_some_of_the_detections():
    taken = FOUND.take(torch.tensor([1]))
    assert taken.classes.tolist() == [0]
    assert taken.boxes.tolist() == [FOUND.boxes[1].tolist()]
