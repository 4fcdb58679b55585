"""The true boxes of a data set: where their images and categories stand."""

from pathlib import Path

import numpy as np
import pytest

from ovd.data.category import Category
from ovd.data.truth import JudgedImage, Truth


@pytest.mark.parametrize("known", [[-7, 0, 1, 12], [5], [-(2**62), 3, 2**62], []])
def test_rows_are_those_of_a_search_whatever_the_gaps(known):
    truth = Truth(
        path=Path("truth.json"),
        is_federated=False,
        images=tuple(JudgedImage(identifier, (), ()) for identifier in known),
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
    part = truth.only(np.array(known[1:], np.int64), np.array(known[:1], np.int64))
    assert (part.ids_of_images.tolist(), part.ids_of_categories.tolist()) == (known[1:], known[:1])
