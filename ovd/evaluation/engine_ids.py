"""Ids that the metric engines read exactly; they read results as floats, which round ids above 2^53."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ovd.data.truth import Truth, TruthImage
from ovd.evaluation.results import Results
from ovd.shapes import Int64

MAX_EXACT_ID = 2**53


def with_exact_ids(truth: Truth, judged: Sequence[Results]) -> tuple[Truth, list[Results]]:
    """Return truth and detections with ids that an engine reads exactly.

    If an id is negative or above 2^53, all ids are replaced by positions from 1. No figure depends on the ids
    themselves, and the order of images and categories does not change.
    """
    if all(_are_exact(ids) for ids in (truth.ids_of_images, truth.ids_of_categories)):
        return truth, list(judged)

    def known_categories(ids: tuple[int, ...]) -> tuple[int, ...]:
        values = np.array(ids, np.int64)
        return tuple((truth.category_rows(values[np.isin(values, truth.ids_of_categories)]) + 1).tolist())

    renumbered = replace(
        truth,
        images=tuple(
            TruthImage(
                number,
                known_categories(image.negative_category_ids),
                known_categories(image.not_exhaustive_category_ids),
            )
            for number, image in enumerate(truth.images, start=1)
        ),
        categories=tuple(replace(category, id=number) for number, category in enumerate(truth.categories, start=1)),
        image_ids=truth.image_rows(truth.image_ids) + 1,
        category_ids=truth.category_rows(truth.category_ids) + 1,
    )
    return renumbered, [
        replace(
            results,
            image_ids=truth.image_rows(results.image_ids) + 1,
            category_ids=truth.category_rows(results.category_ids) + 1,
        )
        for results in judged
    ]


def _are_exact(ids: Int64[np.ndarray, " N"]) -> bool:
    return not len(ids) or bool(ids.min() >= 0 and ids.max() <= MAX_EXACT_ID)
