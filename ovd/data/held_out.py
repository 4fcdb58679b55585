"""What is held out of a training set to calibrate on: some images, and some names.

The choice depends on ids and names alone, so that all stages of a training hold out the same.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from ovd.data.index import AnnotationIndex
from ovd.section import Section
from ovd.shapes import Bool

LARGEST_SHARE = 10
"""At most one in this many images of a training set is held out."""


class CalibrationOptions(Section):
    """What is held out of the training set to calibrate scores on at the end (evaluation/calibrate.py)."""

    images: PositiveInt = 400
    """Number of images that are not trained on; at most a tenth of the training set."""
    names: float = Field(default=0.1, ge=0, lt=1)
    """Share of the classes whose names are never trained on, as if they were novel: their boxes teach the box branch
    and the quality alone. With `data.pairs` captions may still say them, as they say novel ones. 0 trains on all names;
    then the bias towards trained names is not measured."""
    name_bias: NonNegativeFloat | None = None
    """The bias towards trained names, taken off their cosines, where it is known from a run that held out names; by
    default it is measured."""


def held_out_images(index: AnnotationIndex, count: int) -> Bool[np.ndarray, " N"]:
    """Which images are held out; fewer than `count` of a small set."""
    return _first(map(str, index.image_ids.tolist()), min(count, len(index) // LARGEST_SHARE))


def held_out_names(index: AnnotationIndex, options: CalibrationOptions) -> Bool[np.ndarray, " C"]:
    """Which classes' names are held out."""
    names = [category.name for category in index.categories]
    return _first(names, min(round(options.names * len(names)), len(names) - 1))


def _first(names: Iterable[str], count: int) -> Bool[np.ndarray, " N"]:
    """The `count` names that come first in the order of their hashes."""
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in names], kind="stable")
    chosen = np.zeros(len(order), bool)
    chosen[order[:count]] = True
    return chosen
