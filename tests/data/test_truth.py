"""The true boxes of a data set: the rows of their images and categories."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovd.data.category import Category
from ovd.data.truth import Truth, TruthImage


@pytest.mark.parametrize("known", [[-7, 0, 1, 12], [5], [-(2**62), 3, 2**62], []])
def test_rows_are_those_of_a_search_whatever_the_gaps(known):
    truth = Truth(
        path=Path("truth.json"),
        is_federated=False,
        images=tuple(TruthImage(identifier, (), ()) for identifier in known),
        categories=tuple(Category(identifier, f"class {identifier}", (), "r", 1) for identifier in known),
        image_ids=np.zeros(0, np.int64),
        category_ids=np.zeros(0, np.int64),
        boxes_xywh=np.zeros((0, 4)),
        areas_px=np.zeros(0),
        crowd=np.zeros(0, bool),
        num_without_area=0,
    )
    ids = np.random.default_rng(0).choice(known, 50 if known else 0).astype(np.int64)
    expected = [known.index(identifier) for identifier in ids]
    assert truth.image_rows(ids).tolist() == truth.category_rows(ids).tolist() == expected
    assert truth.ids_of_images.tolist() == truth.ids_of_categories.tolist() == known
    part = truth.restrict(np.array(known[1:], np.int64), np.array(known[:1], np.int64))
    assert (part.ids_of_images.tolist(), part.ids_of_categories.tolist()) == (known[1:], known[:1])


@pytest.mark.parametrize(
    "change",
    [
        {"is_federated": True},
        {"images": (TruthImage(1, (4,), ()), TruthImage(2, (), ()))},
        {"images": (TruthImage(1, (), (4,)), TruthImage(2, (), ()))},
        {"categories": (Category(3, "cat"), Category(4, "wolf"))},
        {"image_ids": np.array([1, 1])},
        {"category_ids": np.array([4, 3])},
        {"boxes_xywh": np.array([[1.0, 2, 3, 4], [1, 2, 3, 5]])},
        {"areas_px": np.array([12.0, 11])},
        {"crowd": np.array([False, True])},
    ],
    ids=str,
)
def test_a_fingerprint_is_of_all_that_metrics_depend_on(change):
    truth = Truth(
        path=Path("truth.json"),
        is_federated=False,
        images=(TruthImage(1, (), ()), TruthImage(2, (), ())),
        categories=(Category(3, "cat"), Category(4, "dog")),
        image_ids=np.array([1, 2]),
        category_ids=np.array([3, 4]),
        boxes_xywh=np.array([[1.0, 2, 3, 4]] * 2),
        areas_px=np.array([12.0, 12]),
        crowd=np.zeros(2, bool),
        num_without_area=0,
    )
    assert replace(truth, path=Path("elsewhere.json")).fingerprint() == truth.fingerprint()
    assert replace(truth, **change).fingerprint() != truth.fingerprint()


def test_boxes_of_a_class_are_counted_without_crowds_also_in_a_part_of_the_set():
    truth = Truth(
        path=Path("truth.json"),
        is_federated=False,
        images=(TruthImage(1, (), ()), TruthImage(2, (), ())),
        categories=(Category(3, "cat"), Category(4, "dog"), Category(9, "owl")),
        image_ids=np.array([1, 1, 1, 2, 2]),
        category_ids=np.array([3, 4, 4, 4, 3]),
        boxes_xywh=np.array([[1.0, 2, 3, 4]] * 5),
        areas_px=np.full(5, 12.0),
        crowd=np.array([False, False, False, True, True]),
        num_without_area=0,
    )
    assert truth.num_boxes_of_categories().tolist() == [1, 2, 0]
    assert truth.restrict(np.array([2]), np.array([4, 9])).num_boxes_of_categories().tolist() == [0, 0]
    assert truth.restrict(np.array([1]), np.array([4])).num_boxes_of_categories().tolist() == [2]
