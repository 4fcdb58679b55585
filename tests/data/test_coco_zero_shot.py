"""COCO's zero-shot split: evaluation judges the images that detection runs on, and ignores further results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovd.data.annotations import load_annotations
from ovd.data.coco_zero_shot import BASE, GROUPS, NOVEL, split_coco_base, split_coco_evaluation
from ovd.data.report import DataReport
from ovd.data.vocabulary import VocabularyLeak
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.results import Results

OTHERS = [f"other {number}" for number in range(15)]
NAMES = [*sorted(BASE | NOVEL), *OTHERS]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Annotations of five images: one with an object, one with only a crowd region, one with only a sliver, one with
    another class, one empty."""
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 50, "width": 60} for number in range(1, 6)]
    boxes = [
        (1, "cat", [5, 5, 20, 20], 0),
        (2, "dog", [5, 5, 30, 30], 1),
        (3, "cat", [5, 5, 0.5, 9], 0),
        (4, OTHERS[0], [5, 5, 20, 20], 0),
    ]
    rows = [
        {
            "id": number,
            "image_id": image,
            "category_id": NAMES.index(name) + 1,
            "bbox": box,
            "iscrowd": crowd,
            "area": 9,
        }
        for number, (image, name, box, crowd) in enumerate(boxes, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return path


def test_the_images_that_are_judged_are_those_that_are_detected_in(annotations: Path) -> None:
    index = split_coco_evaluation(
        load_annotations(annotations, None, format="coco", report=DataReport(stops=False), with_truth=True)
    )
    assert index.truth is not None
    evaluator = COCOEvaluator(index.truth, (), groups=GROUPS)
    assert index.image_ids.tolist() == [image.id for image in evaluator.truth.images] == [1, 2, 3]


def test_results_of_all_images_and_classes_are_judged_by_those_that_count(annotations: Path) -> None:
    index = load_annotations(annotations, None, format="coco", report=DataReport(stops=False), with_truth=True)
    assert index.truth is not None
    cat, other = NAMES.index("cat") + 1, NAMES.index(OTHERS[0]) + 1
    given = Results(
        image_ids=np.array([1, 1, 5, 4]),
        category_ids=np.array([cat, other, cat, other]),
        boxes_xywh=np.array([[5.0, 5, 20, 20]] * 4),
        scores=np.full(4, 0.9),
    )
    evaluator = COCOEvaluator(index.truth, (), groups=GROUPS)
    evaluator.add_results(given, source="results.json")
    evaluation = evaluator.evaluate()
    assert len(evaluator.results()) == 1
    assert evaluation.metrics["AP50_novel"] == pytest.approx(0.505, abs=1e-3)  # one of two cats is found
    assert "3 more in images or of classes that are not evaluated" in evaluation.notes
    beside = replace(given.take(np.array([0])), boxes_xywh=np.array([[7.0, 5, 20, 20]]))  # IoU 0.82: right at 7 of 10
    evaluator.clear()
    evaluator.add_results(beside, source="results.json")
    assert evaluator.evaluate().metrics["AP50_novel"] == pytest.approx(0.505, abs=1e-3)
    evaluator.clear()
    evaluator.add_results(given.take(np.array([0])), source="results.json")
    assert len(evaluator.evaluate().notes) == 1
    with pytest.raises(ValueError, match="unknown image_id"):
        evaluator.add_results(Results(np.array([99]), np.array([cat]), np.ones((1, 4)), np.ones(1)), source="results")


def test_training_is_on_the_base_classes_in_images_that_have_one(annotations: Path) -> None:
    content = json.loads(annotations.read_text())
    car = {"id": 9, "image_id": 5, "category_id": NAMES.index("car") + 1, "bbox": [5, 5, 9, 9], "area": 81}
    content["annotations"].append(car)
    annotations.write_text(json.dumps(content))
    index = load_annotations(annotations, None, format="coco", report=DataReport(stops=False))
    base = split_coco_base(index)
    assert base.image_ids.tolist() == [5]
    assert sorted(base.names) == sorted(BASE)
    assert [base.names[row] for row in base.record(0).labels.classes] == ["car"]
    categories = tuple(replace(one, synonyms=("Cat",)) if one.name == "car" else one for one in index.categories)
    with pytest.raises(VocabularyLeak, match="novel class 'cat' is a name of the training class 'car'"):
        split_coco_base(replace(index, categories=categories))
