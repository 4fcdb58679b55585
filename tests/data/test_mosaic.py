"""Mosaics of four images: every box stays on its object, and the labels of each image still hold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.data.index import Labels
from ovd.data.loading.mosaic import Mosaics, join_tiles


def tile(number: int, height: int, width: int, **changes) -> tuple[np.ndarray, Labels]:
    """Make a gray image with one object of class `number` in its own shade of gray, and a crowd region in the
    corner."""
    image = np.full((height, width, 3), 100, dtype=np.uint8)
    box = np.array([1, 2, width - 3, height - 1])
    image[box[1] : box[3], box[0] : box[2]] = 200 + number
    labels = replace(
        Labels.empty(),
        boxes=box[None].astype(np.float32),
        classes=np.array([number]),
        crowd_boxes=np.array([[0, 0, 2, 1]], dtype=np.float32),
    )
    return image, replace(labels, **changes)


SIDES = st.lists(st.tuples(st.integers(5, 40), st.integers(5, 40)), min_size=4, max_size=4)


@settings(deadline=None, max_examples=50)
@given(SIDES)
def test_every_box_lies_on_its_object_and_every_pixel_is_somewhere(sides):
    images, labels_of = zip(*[tile(number, *side) for number, side in enumerate(sides)], strict=True)
    mosaic, labels = join_tiles(images, labels_of)
    (h0, w0), (h1, w1), (h2, w2), (h3, w3) = sides
    assert mosaic.shape[:2] == (max(h0, h1) + max(h2, h3), max(w0, w2) + max(w1, w3))
    assert sorted(mosaic[mosaic > 0].tolist()) == sorted(np.concatenate([image.ravel() for image in images]).tolist())
    for box, name in zip(labels.boxes.astype(int), labels.classes, strict=True):
        left, top, right, bottom = box
        assert (mosaic[top:bottom, left:right] == 200 + name).all()
    for left, top, right, bottom in labels.crowd_boxes.astype(int):
        assert (mosaic[top:bottom, left:right] == 100).all()
    assert (len(labels.boxes), len(labels.crowd_boxes)) == (4, 4)


def test_nothing_in_any_of_the_four():
    nothing = {name: np.zeros((0, 4), np.float32) for name in ("boxes", "crowd_boxes")}
    tiles = [tile(number, 8, 6, classes=np.array([], dtype=np.int64), **nothing) for number in range(4)]
    _, labels = join_tiles([image for image, _ in tiles], [of_tile for _, of_tile in tiles])
    assert labels.boxes.shape == labels.crowd_boxes.shape == (0, 4)
    assert labels.boxes.dtype == np.float32
    assert labels.classes.dtype == labels.negative_classes.dtype == np.int64


def test_nothing_is_verified_to_be_absent_and_every_class_that_is_not_exhaustive_stays_so():
    tiles = [
        tile(number, 8, 6, negative_classes=np.array([7]), not_exhaustive_classes=np.array([number % 2]))
        for number in range(4)
    ]
    _, labels = join_tiles([image for image, _ in tiles], [of_tile for _, of_tile in tiles])
    assert len(labels.negative_classes) == 0
    assert labels.not_exhaustive_classes.tolist() == [0, 1]


def test_a_mosaic_of_pairs_is_about_the_texts_of_all():
    tiles = [tile(number, 8, 6, image_texts=np.array([9, number % 3])) for number in range(4)]
    _, labels = join_tiles([image for image, _ in tiles], [of_tile for _, of_tile in tiles])
    assert labels.image_texts.tolist() == [0, 1, 2, 9]
    assert labels.image_texts.dtype == np.int64


def untouched(pixels: np.ndarray, labels: Labels, _seed: int) -> tuple[np.ndarray, Labels]:
    return pixels, labels


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_how_often_and_of_which_images_mosaics_are_made(probability):
    weights = np.array([1.0, 3.0, 0.0, 2.0])
    mosaics = Mosaics(mosaic=probability, weights=weights, tile_transform=untouched)
    drawn = [mosaics.tiles(2, seed) for seed in range(4000)]
    assert drawn == [mosaics.tiles(2, seed) for seed in range(4000)]
    made = [tiles for tiles in drawn if tiles]
    assert len(made) / len(drawn) == pytest.approx(probability, abs=0.03)
    assert all(len(tiles) == 4 and tiles[0][0] == 2 for tiles in made)
    if made:
        others = np.bincount([image for tiles in made for image, _ in tiles[1:]], minlength=4)
        np.testing.assert_allclose(others / others.sum(), weights / 6, atol=0.03)
        seeds = [seed for tiles in made for _, seed in tiles]
        assert len(set(seeds)) == len(seeds)
