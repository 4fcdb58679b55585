"""Ids as the metric engines keep them apart: they read results as floats, which round ids above 2^53."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ovd.data.truth import JudgedImage, Truth
from ovd.evaluation.results import Results
from ovd.shapes import Int64

LARGEST_EXACT_ID = 2**53


def with_exact_ids(truth: Truth, judged: Sequence[Results]) -> tuple[Truth, list[Results]]:
    """Truth and detections for an engine. Where an id is negative or above 2^53, ids are positions from 1, in order.

    No figure depends on the ids themselves, nor does the order of images and categories change.
    """
    image_ids = np.array([image.id for image in truth.images], np.int64)
    category_ids = np.array([category.id for category in truth.categories], np.int64)
    if all(_are_exact(ids) for ids in (image_ids, category_ids)):
        return truth, list(judged)

    def known_categories(ids: tuple[int, ...]) -> tuple[int, ...]:
        values = np.array(ids, np.int64)
        return tuple(_positions(category_ids, values[np.isin(values, category_ids)]).tolist())

    renumbered = replace(
        truth,
        images=tuple(
            JudgedImage(
                number,
                known_categories(image.negative_category_ids),
                known_categories(image.not_exhaustive_category_ids),
            )
            for number, image in enumerate(truth.images, start=1)
        ),
        categories=tuple(replace(category, id=number) for number, category in enumerate(truth.categories, start=1)),
        image_ids=_positions(image_ids, truth.image_ids),
        category_ids=_positions(category_ids, truth.category_ids),
    )
    return renumbered, [
        replace(
            results,
            image_ids=_positions(image_ids, results.image_ids),
            category_ids=_positions(category_ids, results.category_ids),
        )
        for results in judged
    ]


def _are_exact(ids: Int64[np.ndarray, " N"]) -> bool:
    return not len(ids) or bool(ids.min() >= 0 and ids.max() <= LARGEST_EXACT_ID)


def _positions(known: Int64[np.ndarray, " K"], ids: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """The position, from 1, of each id among the known ones, which ascend."""
    return (np.searchsorted(known, ids) + 1).astype(np.int64)
