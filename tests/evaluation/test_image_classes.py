"""Numbers of image-class pairs against loops, and lists with classes that the file does not have."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ovd.data.category import Category
from ovd.data.truth import Truth, TruthImage
from ovd.evaluation.decision_report import measure_decisions
from ovd.evaluation.image_classes import ImageClassPairs
from ovd.evaluation.results import Results


def small_truth() -> Truth:
    boxes = np.array([[10.0, 10, 20, 20], [40, 40, 10, 30]])
    return Truth(
        path=Path("truth.json"),
        is_federated=True,
        images=(TruthImage(3, (9,), (5,)), TruthImage(40, (5, 5), ())),
        categories=tuple(Category(identifier, f"class {identifier}", (), "r", 1) for identifier in (2, 5, 9)),
        image_ids=np.array([3, 40]),
        category_ids=np.array([5, 2]),
        boxes_xywh=boxes,
        areas_px=boxes[:, 2:].prod(axis=1),
        crowd=np.zeros(2, bool),
        num_without_area=0,
    )


def test_a_number_is_image_row_times_classes_and_class_row():
    pairs = ImageClassPairs(small_truth())
    assert pairs.numbers(np.array([3, 40, 40]), np.array([2, 2, 9])).tolist() == [0, 3, 5]
    assert pairs.known().tolist() == [1, 2, 3, 4]
    assert pairs.incomplete().tolist() == [1]


def test_absent_classes_that_the_file_does_not_have_change_no_decision():
    truth = small_truth()
    results = Results(
        image_ids=np.array([3, 3, 40, 40]),
        category_ids=np.array([5, 2, 2, 9]),
        boxes_xywh=np.array([[10.0, 10, 20, 20], [1, 1, 5, 5], [40, 40, 10, 30], [2, 2, 6, 6]]),
        scores=np.array([0.9, 0.8, 0.7, 0.6]),
    )
    named = tuple(
        replace(image, negative_category_ids=(*image.negative_category_ids, 1, 7, 11)) for image in truth.images
    )
    groups = {"all": np.ones(3, bool)}
    assert measure_decisions(replace(truth, images=named), results, groups) == measure_decisions(truth, results, groups)
