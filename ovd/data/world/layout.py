"""Layout of a long-tailed, federated data set before it is drawn: the objects and annotations of each scene."""

from dataclasses import dataclass

import numpy as np

from ovd.data.world.settings import LVIS_IMAGE_COUNT_QUANTILES, Settings
from ovd.shapes import Int

Layout = list[tuple[int, ...]]
"""Glyph indices of every scene's objects."""


def long_tailed_counts(rng: np.random.Generator, num_classes: int, max_count: int) -> Int[np.ndarray, " C"]:
    """Return train images per class: LVIS's quantiles, clipped at `max_count`, assigned to classes at random."""
    ranks = (np.arange(num_classes) + 0.5) / num_classes
    grid = np.linspace(0, 1, len(LVIS_IMAGE_COUNT_QUANTILES))
    counts = np.exp(np.interp(ranks, grid, np.log(LVIS_IMAGE_COUNT_QUANTILES)))
    return rng.permutation(np.clip(np.rint(counts), 1, max_count).astype(np.int64))


def deal(rng: np.random.Generator, counts: Int[np.ndarray, " C"], objects_per_image: tuple[float, ...]) -> Layout:
    """Shuffle `counts[c]` copies of every class c and deal them to scenes of 1 to 8 objects.

    With a probability of 1/8 per object, a scene with room gets a second object of one of its classes, since things
    come in groups.
    """
    bag = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    probabilities = np.asarray(objects_per_image) / sum(objects_per_image)
    scenes, start = Layout(), 0
    while start < len(bag):
        size = int(rng.choice(len(probabilities), p=probabilities)) + 1
        glyphs = [int(glyph) for glyph in bag[start : start + size]]
        if len(glyphs) < len(probabilities) and rng.random() < 0.125 * len(glyphs):
            glyphs.append(glyphs[rng.integers(len(glyphs))])
        scenes.append(tuple(glyphs))
        start += size
    return scenes


@dataclass(frozen=True)
class Visibility:
    """Federated annotation of one scene, as in LVIS."""

    shown: tuple[bool, ...]
    """Whether each object has a box."""
    negatives: tuple[int, ...]
    """Classes that were verified to be absent."""
    not_exhaustive: tuple[int, ...]


def annotate(
    rng: np.random.Generator,
    glyphs: tuple[int, ...],
    remaining: Int[np.ndarray, " C"],
    at_least: int,
    settings: Settings,
) -> Visibility:
    """Hide some classes and some instances, and draw the verified negatives.

    `remaining` counts the boxes of every class in the whole set. It is reduced in place, but never below `at_least`
    unless it was lower before.
    """
    present = sorted(set(glyphs))
    shown = np.ones(len(glyphs), bool)
    not_exhaustive = []
    for glyph in present:
        instances = np.nonzero(np.asarray(glyphs) == glyph)[0]
        draw = rng.random()
        if draw < settings.hidden_class_probability and remaining[glyph] - len(instances) >= at_least:
            shown[instances] = False
            remaining[glyph] -= len(instances)
        elif (
            len(instances) > 1
            and rng.random() < settings.not_exhaustive_probability
            and remaining[glyph] - 1 >= at_least
        ):
            shown[rng.choice(instances)] = False
            remaining[glyph] -= 1
            not_exhaustive.append(glyph)
    absent = np.setdiff1d(np.arange(len(remaining)), present)
    num_negatives = min(len(absent), int(rng.poisson(settings.negatives_per_image)))
    negatives = sorted(int(c) for c in rng.choice(absent, num_negatives, replace=False))
    return Visibility(tuple(bool(flag) for flag in shown), tuple(negatives), tuple(not_exhaustive))
