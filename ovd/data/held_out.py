"""Choice of the images and class names of a training set that are held out for calibration.

The choice depends only on image ids and class names, so that all stages of a training hold out the same ones.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from ovd.data.index import AnnotationIndex
from ovd.section import Section
from ovd.shapes import Bool

LARGEST_SHARE = 10
"""Smallest number of training images per held-out image."""


class CalibrationOptions(Section):
    """Images and class names held out of training to calibrate scores on at its end (evaluation/calibrate.py)."""

    images: PositiveInt = 400
    """Number of images that are held out of training; at most a tenth of the training set."""
    names: float = Field(default=0.1, ge=0, lt=1)
    """Share of the classes whose names are never trained on, as if they were novel: their boxes train only the box
    branch and the quality. With `data.pairs`, captions may still contain these names, as they may contain novel ones.
    0 trains on all names; the bias towards trained names is then not measured."""
    name_bias: NonNegativeFloat | None = None
    """Bias towards trained names, which is subtracted from their cosines, if it is known from a run that held out
    names; by default it is measured."""


def held_out_images(index: AnnotationIndex, count: int) -> Bool[np.ndarray, " N"]:
    """Return a mask of the held-out images: `count`, or a tenth of all images if that is fewer."""
    return _first(map(str, index.image_ids.tolist()), min(count, len(index) // LARGEST_SHARE))


def held_out_names(index: AnnotationIndex, options: CalibrationOptions) -> Bool[np.ndarray, " C"]:
    """Return a mask of the classes whose names are held out."""
    names = [category.name for category in index.categories]
    return _first(names, min(round(options.names * len(names)), len(names) - 1))


def _first(names: Iterable[str], count: int) -> Bool[np.ndarray, " N"]:
    """Return a mask of the `count` names that come first in the order of their hashes."""
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in names], kind="stable")
    chosen = np.zeros(len(order), bool)
    chosen[order[:count]] = True
    return chosen
