"""predictions.jpg: which images are drawn, and what counts as missed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_decisions import make_results, make_truth

from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.evaluation import prediction_grid
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.prediction_grid import NAME, chosen_rows, missed_objects, write_prediction_grid
from ovd.evaluation.run import evaluate_results
from ovd.structures import Detections


@pytest.fixture
def index(tmp_path: Path) -> AnnotationIndex:
    """The images of `make_truth`, of which the third is missing."""
    truth, rng = make_truth(), np.random.default_rng(0)
    content = truth.as_dataset()
    content["images"] = [
        {"id": image.id, "file_name": f"{image.id}.png", "height": 140, "width": 100} for image in truth.images
    ]
    for number, image in enumerate(truth.images):
        if number != 2:
            Image.fromarray(rng.integers(0, 255, (140, 100, 3), dtype=np.uint8)).save(tmp_path / f"{image.id}.png")
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return load_annotations(
        tmp_path / "truth.json", tmp_path, format="coco", report=DataReport(stops=False), with_truth=True
    )


def test_the_same_images_are_drawn_every_time_and_only_those_with_a_box(index, monkeypatch) -> None:
    truth = index.truth
    with_box = [row for row, image in enumerate(index.image_ids) if (truth.image_ids[~truth.crowd] == image).any()]
    assert 3 < len(with_box) < len(index)
    monkeypatch.setattr(prediction_grid, "NUM_IMAGES", len(with_box) + 3)
    assert chosen_rows(truth, index) == with_box
    monkeypatch.setattr(prediction_grid, "NUM_IMAGES", 3)
    assert chosen_rows(truth, index) == [with_box[0], with_box[(len(with_box) - 1) // 2], with_box[-1]]
    assert chosen_rows(truth.only(np.zeros(0, np.int64), np.zeros(0, np.int64)), index) == []


def test_an_object_is_missed_unless_its_class_is_shown_on_it() -> None:
    truth = make_truth()
    image_id = int(truth.image_ids[~truth.crowd][0])
    rows = np.flatnonzero((truth.image_ids == image_id) & ~truth.crowd)
    boxes = torch.from_numpy(truth.boxes_xywh[rows]).float()
    boxes[:, 2:] += boxes[:, :2]
    classes = torch.tensor([(int(truth.category_ids[row]) - 1) // 2 for row in rows])
    for shown_classes, num_missed in ((classes, 0), ((classes + 1) % 5, len(rows))):
        missed = missed_objects(truth, image_id, Detections(boxes, torch.ones(len(rows)), shown_classes))
        assert len(missed.boxes) == num_missed
    missed = missed_objects(truth, image_id, Detections.empty())
    assert torch.equal(missed.boxes, boxes)
    assert torch.equal(missed.classes, classes)


def test_the_grid_is_written_with_an_evaluation_whose_images_are_known(index, tmp_path, capsys) -> None:
    evaluator = COCOEvaluator(index.truth, ())
    evaluator.add_results(make_results(index.truth), source="results")
    output = tmp_path / "evaluation"
    output.mkdir()
    measures = evaluate_results(evaluator, "coco", exhaustive=None, output_dir=output, index=index)
    with Image.open(output / NAME) as grid:
        assert grid.width == 4 * (3 * 100 + 6)  # enlarged so that the longer side has at least 384 px
        assert grid.height % (3 * 140 + 6) == 0
    evaluate_results(evaluator, "coco", exhaustive=None, output_dir=output)
    assert not (output / NAME).exists()  # of an earlier evaluation
    for image in tmp_path.glob("*.png"):
        image.unlink()
    write_prediction_grid(measures, index, output)
    assert not (output / NAME).exists()
