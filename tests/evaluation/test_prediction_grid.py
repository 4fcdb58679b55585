"""predictions.jpg: the choice of images, and the boxes drawn as missed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_decisions import make_results, make_truth

from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.evaluation import prediction_grid
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.prediction_grid import PREDICTION_GRID, choose_rows, to_detections, write_prediction_grid
from ovd.evaluation.run import measure_results, write_measures
from ovd.visualize.boxes import GRID_PX


@pytest.fixture
def index(tmp_path: Path) -> AnnotationIndex:
    """Index of the images of `make_truth`, the third of which is missing."""
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
    assert choose_rows(truth, index) == with_box
    monkeypatch.setattr(prediction_grid, "NUM_IMAGES", 3)
    assert choose_rows(truth, index) == [with_box[0], with_box[(len(with_box) - 1) // 2], with_box[-1]]
    assert choose_rows(truth.restrict(np.zeros(0, np.int64), np.zeros(0, np.int64)), index) == []


def test_boxes_are_drawn_but_for_those_of_a_negative_side() -> None:
    boxes = np.array([[1.0, 2, 3, 4], [50, 50, -5, 20], [0, 0, 0, 0]])
    found = to_detections(boxes, np.array([0.5, 0.4, 0.3]), np.array([2, 1, 0]))
    assert found.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 0, 0]]
    assert found.classes.tolist() == [2, 0]


def test_what_is_drawn_is_what_the_decisions_found_and_missed(index, tmp_path, monkeypatch) -> None:
    drawn = []

    def draw(image, detections, names, *, missed, rare, in_grid):
        drawn.append((detections, missed))
        return Image.fromarray(image)

    monkeypatch.setattr(prediction_grid, "draw_detections", draw)
    evaluator = COCOEvaluator(index.truth, ())
    evaluator.add_results(make_results(index.truth), source="results")
    measures = measure_results(evaluator, exhaustive=None)
    write_measures(measures, tmp_path, index=index)
    verdicts, truth = measures.decisions.verdicts, measures.truth
    readable = [row for row in choose_rows(truth, index) if row != 2]
    assert len(drawn) == len(readable)
    for row, (detections, missed) in zip(readable, drawn, strict=True):
        here = truth.image_ids[verdicts.true_rows] == index.image_ids[row]
        assert len(missed.boxes) == (~verdicts.is_found[here]).sum()
        assert 0 <= len(detections.boxes) <= (verdicts.reported.image_ids == index.image_ids[row]).sum()
        assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)


def test_the_grid_is_written_with_an_evaluation_whose_images_are_known(index, tmp_path, capsys) -> None:
    evaluator = COCOEvaluator(index.truth, ())
    evaluator.add_results(make_results(index.truth), source="results")
    output = tmp_path / "evaluation"
    output.mkdir()
    measures = measure_results(evaluator, exhaustive=None)
    write_measures(measures, output, index=index)
    with Image.open(output / PREDICTION_GRID) as grid:
        assert grid.width == 4 * (round(GRID_PX * 100 / 140) + 6)
        assert grid.height % (GRID_PX + 6) > 20  # room for the note under the pictures
    write_measures(measures, output)
    assert not (output / PREDICTION_GRID).exists()  # that of the earlier evaluation is removed
    for image in tmp_path.glob("*.png"):
        image.unlink()
    write_prediction_grid(measures, index, output)
    assert not (output / PREDICTION_GRID).exists()
