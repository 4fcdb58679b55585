"""Resizing, flips and crops: boxes follow the pixels, and the seed alone decides everything."""

import os
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
from photo import photo

from ovd.data.index import Labels
from ovd.data.loading.color_jitter import ColorChange
from ovd.data.loading.transforms import TrainTransform, eval_transform, resize_labels

Sample = tuple[np.ndarray, Labels]


def sample(
    height: int, width: int, boxes: list | None = None, classes: list | None = None, crowds: list | None = None
) -> Sample:
    boxes = boxes or []
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels, replace(
        Labels.empty(),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=np.array(classes if classes is not None else range(len(boxes)), dtype=np.int64),
        crowd_boxes=np.array(crowds or [], dtype=np.float32).reshape(-1, 4),
    )


def painted(height: int, width: int, boxes: list[list[int]]) -> Sample:
    """Make a black image in which each box is filled in a color channel of its own."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for row, (left, top, right, bottom) in enumerate(boxes):
        image[top:bottom, left:right, row] = 200
    return image, replace(Labels.empty(), boxes=np.array(boxes, np.float32), classes=np.arange(len(boxes)))


def equal(one: Sample, other: Sample) -> bool:
    arrays = [[pixels, *vars(labels).values()] for pixels, labels in (one, other)]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(*arrays, strict=True))


def test_boxes_follow_the_pixels_through_resize_flip_and_crop():
    # The boxes are few and large, so that a crop of size 96 seldom loses one; pixels are compared with each box left.
    original = painted(120, 80, [[5, 10, 35, 60], [45, 70, 75, 110]])
    transform = TrainTransform(size=96, scale=(0.8, 1.4), flip=0.5, color=0)
    num_boxes = num_flipped = num_cropped = 0
    for seed in range(60):
        pixels, moved = transform(*original, seed)
        height, width = pixels.shape[:2]
        assert max(height, width) <= 96
        num_cropped += height == 96
        for box, row in zip(moved.boxes, moved.classes, strict=True):
            inside = pixels[..., row] > 100
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(box, found, atol=1)
            num_boxes += 1
        if len(moved.boxes) == 2:
            num_flipped += moved.boxes[0, 0] > moved.boxes[1, 0]
    assert num_boxes > 90
    assert 15 < num_flipped < 45
    assert 20 < num_cropped < 55


def test_nothing_happens_where_nothing_is_asked_for():
    image, labels = sample(96, 64, [[0, 0, 64, 96], [1.25, 2.5, 30.75, 40]], crowds=[[3, 4, 50, 60]])
    pixels, moved = TrainTransform(size=96, scale=(1, 1), flip=0, color=0)(image, labels, 3)
    np.testing.assert_array_equal(pixels, image)
    np.testing.assert_allclose(moved.boxes, labels.boxes, atol=1e-4)
    np.testing.assert_allclose(moved.crowd_boxes, labels.crowd_boxes, atol=1e-4)
    assert moved.classes.tolist() == [0, 1]


def test_a_certain_flip_mirrors_image_and_boxes():
    image, labels = sample(40, 60, [[10, 0, 25, 40]], crowds=[[0, 5, 20, 10]])
    pixels, moved = TrainTransform(size=60, scale=(1, 1), flip=1, color=0)(image, labels, 0)
    np.testing.assert_array_equal(pixels, image[:, ::-1])
    np.testing.assert_allclose(moved.boxes, [[35, 0, 50, 40]], atol=1e-4)
    np.testing.assert_allclose(moved.crowd_boxes, [[40, 5, 60, 10]], atol=1e-4)


def test_objects_that_the_crop_leaves_too_little_of_are_dropped_and_regions_are_clipped():
    boxes = [[row * 20, 0, row * 20 + 20, 100] for row in range(10)]
    # The image becomes 400 x 200, with boxes 40 px wide, and a window of 100 x 100 is cut.
    transform = TrainTransform(size=100, scale=(4, 4), flip=0, color=0)
    seen_shares = set()
    for seed in range(40):
        pixels, moved = transform(*sample(100, 200, boxes, crowds=[[0, 0, 200, 100], *boxes]), seed)
        assert pixels.shape == (100, 100, 3)
        assert moved.crowd_boxes[0].tolist() == [0, 0, 100, 100]
        widths = moved.boxes[:, 2] - moved.boxes[:, 0]
        assert (np.diff(moved.classes) == 1).all()
        # A box is kept from 30 % of its 40 x 200 px on; with 100 rows in the window, that is 24 columns.
        assert (widths >= 23.99).all()
        region_widths = moved.crowd_boxes[1:, 2] - moved.crowd_boxes[1:, 0]
        assert region_widths.sum() == pytest.approx(100, abs=1e-3)
        assert (region_widths >= 23.99).sum() == len(moved.boxes)
        seen_shares.update(np.round(region_widths))
    assert min(seen_shares) < 24


def test_objects_under_two_pixels_are_dropped():
    transform = TrainTransform(size=50, scale=(1, 1), flip=0, color=0)
    boxes = [[0, 0, 3.9, 50], [0, 0, 4.1, 50], [8, 0, 12, 50]]
    _, moved = transform(*sample(100, 100, boxes, classes=[7, 8, 9]), 0)
    assert moved.classes.tolist() == [8, 9]
    np.testing.assert_allclose(moved.boxes, [[0, 0, 2.05, 25], [4.0, 0, 6, 25]], atol=1e-4)


def test_no_objects_and_boxes_over_the_border():
    transform = TrainTransform(size=64, scale=(0.5, 2), flip=0.5, color=0.4)
    for seed in range(10):
        _, moved = transform(*sample(33, 57), seed)
        assert moved.boxes.shape == moved.crowd_boxes.shape == (0, 4)
        assert moved.classes.shape == (0,)
    _, moved = TrainTransform(size=57, scale=(1, 1), flip=0, color=0)(
        *sample(33, 57, [[-0.01, 0, 57.01, 33.5], [60, 0, 70, 20]], crowds=[[-5, -5, 0, 0]]), 0
    )
    np.testing.assert_allclose(moved.boxes, [[0, 0, 57, 33]], atol=1e-4)
    assert len(moved.crowd_boxes) == 0


def test_a_crop_of_an_enlarged_image_is_that_of_the_whole_to_its_last_row_and_column():
    image, labels = sample(30, 40)
    whole = cv2.resize(image, (160, 120), interpolation=cv2.INTER_LINEAR).astype(int)
    for seed in range(10):
        pixels, _ = TrainTransform(size=40, scale=(4, 4), flip=0, color=0)(image, labels, seed)
        generator = np.random.default_rng(seed)
        top, left = (4 * (int(generator.integers(side - 40 + 1)) // 4) for side in (120, 160))
        # Before its first pixel a crop repeats that pixel, so the first two rows and columns are not compared.
        assert np.abs(whole[top : top + 40, left : left + 40] - pixels)[2:, 2:].max() <= 1


def test_what_lies_outside_the_image_is_no_part_of_what_a_crop_cuts_off():
    transform = TrainTransform(size=57, scale=(1, 1), flip=0, color=0)
    _, moved = transform(*sample(33, 57, [[-90, 0, 10, 33], [50, 20, 157, 133]]), 0)
    np.testing.assert_allclose(moved.boxes, [[0, 0, 10, 33], [50, 20, 57, 33]], atol=1e-4)


def test_the_result_is_a_function_of_sample_and_seed_alone():
    transform = TrainTransform(size=64, scale=(0.8, 1.25), flip=0.5, color=0.3)
    again = TrainTransform(size=64, scale=(0.8, 1.25), flip=0.5, color=0.3)
    original = sample(50, 70, [[5, 5, 40, 40]], crowds=[[0, 0, 9, 9]])
    untouched = sample(50, 70, [[5, 5, 40, 40]], crowds=[[0, 0, 9, 9]])
    first = {seed: transform(*original, seed) for seed in range(8)}
    np.random.seed(1)
    for seed in reversed(range(8)):
        assert equal(again(*original, seed), first[seed])
    assert equal(original, untouched)
    assert len({pixels.tobytes() for pixels, _ in first.values()}) == 8
    # The same holds in another process, although albumentations seeds its workers itself.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert equal(pool.submit(_transform_elsewhere, original, 5).result(timeout=300), first[5])


def by_albumentations(
    original: Sample, seed: int, *, size: int, scale: tuple[float, float], color: float
) -> tuple[np.ndarray, np.ndarray, ColorChange]:
    """Compute the reference with albumentations.

    Returns:
        The whole image resized and flipped, the crop's place in it (left, top, right, bottom), and the color change.
    """
    sides = range(round(size * scale[0]), round(size * scale[1]) + 1)
    resize = A.Compose([A.LongestMaxSize(list(sides), area_for_downscale="image"), A.HorizontalFlip(p=0.5)])
    jitter = A.ColorJitter(color, color, color, color / 4, p=1)
    generator, py_random = np.random.default_rng(seed), random.Random(seed)
    for step in (resize, jitter):
        step.set_random_state(generator, py_random)
    whole = resize(image=original[0])["image"]
    height, width = whole.shape[:2]
    top, left = (int(generator.integers(max(side - size, 0) + 1)) for side in (height, width))
    crop = np.array([left, top, min(left + size, width), min(top + size, height)])
    py_random.random()  # skip the draw of the Compose that would run the jitter
    drawn = jitter.get_params()
    return whole, crop, ColorChange(**{**drawn, "order": tuple(drawn["order"])})


def test_a_seed_draws_what_it_draws_in_albumentations():
    # The image is smooth because our crop begins at a whole pixel of the original, up to one before the reference's.
    smooth = cv2.GaussianBlur(photo(), (0, 0), 6)
    original = smooth, sample(smooth.shape[0], smooth.shape[1], [[100, 120, 300, 400]])[1]
    size, scale = 300, (0.3, 2.0)
    for seed in range(25):
        whole, (left, top, right, bottom), change = by_albumentations(original, seed, size=size, scale=scale, color=0.2)
        plain, labels = TrainTransform(size=size, scale=scale, flip=0.5, color=0)(*original, seed)
        recolored, same_labels = TrainTransform(size=size, scale=scale, flip=0.5, color=0.2)(*original, seed)
        assert plain.shape == recolored.shape == (bottom - top, right - left, 3)
        assert labels.boxes.tolist() == same_labels.boxes.tolist()
        part = whole[top:bottom, left:right].astype(int)
        assert np.abs(plain - part).mean() < 2.5
        assert np.abs(plain[:, ::-1] - part).mean() > 25
        assert np.abs(change.of(plain).astype(int) - recolored).mean() < 1


def _transform_elsewhere(original: Sample, seed: int) -> Sample:
    return TrainTransform(size=64, scale=(0.8, 1.25), flip=0.5, color=0.3)(*original, seed)


def test_the_side_is_known_before_the_image():
    transform = TrainTransform(size=64, scale=(0.25, 1), flip=0.5, color=0.3)
    for seed in range(20):
        pixels, _ = transform(*sample(90, 50), seed)
        assert pixels.shape[0] == transform.longest_side(seed)


def test_scale_flip_and_color_are_drawn_independently():
    transform = TrainTransform(size=100, scale=(0.5, 1), flip=0.5, color=0.4)
    gray = np.full((50, 100, 3), 100, dtype=np.uint8)
    gray[:, :50] = 90
    results = [transform(gray, Labels.empty(), seed)[0] for seed in range(300)]
    widths = np.array([image.shape[1] for image in results], dtype=float)
    brightness = np.array([image.mean() for image in results])
    flipped = np.array([image[:, 0].mean() > image[:, -1].mean() for image in results], dtype=float)
    assert (widths.min(), widths.max()) == (50, 100)
    assert 0.4 < flipped.mean() < 0.6
    # 300 independent draws have a correlation above 0.2 once in 2,000 times.
    assert np.abs(np.corrcoef([widths, brightness, flipped]) - np.eye(3)).max() < 0.2


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (144, 192)), (640, 427, (192, 128)), (192, 192, (192, 192)), (30, 20, (192, 128)), (1, 400, (1, 192))],
)
def test_eval_resizes_the_longest_side_exactly(height, width, expected):
    image, _ = sample(height, width)
    resized = eval_transform(size=192)(image)
    assert resized.shape == (*expected, 3)
    assert resized.dtype == np.uint8
    if (height, width) == expected[:2]:
        np.testing.assert_array_equal(resized, image)


def test_labels_follow_a_resized_image():
    _, labels = sample(40, 60, [[10, 0, 25, 40]], crowds=[[0, 5, 20, 10]])
    resized = resize_labels(labels, (40, 60), (20, 90))
    assert resized.boxes.tolist() == [[15, 0, 37.5, 20]]
    assert resized.crowd_boxes.tolist() == [[0, 2.5, 30, 5]]
    assert resized.boxes.dtype == resized.crowd_boxes.dtype == np.float32


def test_what_is_known_of_the_whole_image_goes_through():
    image, labels = sample(80, 80, [[0, 0, 9, 9], [70, 70, 79, 79]])
    known = {"negative_classes": [4], "not_exhaustive_classes": [1, 0], "image_texts": [7, 5, 6]}
    labels = replace(labels, **{name: np.array(values) for name, values in known.items()})
    transform = TrainTransform(size=40, scale=(1.5, 2), flip=0.5, color=0.4)
    for seed in range(10):
        _, moved = transform(image, labels, seed)
        assert len(moved.boxes) < 2  # a crop loses at least one of the corners
        assert {name: getattr(moved, name).tolist() for name in known} == known


@pytest.mark.parametrize(("size", "scale"), [(0, (1.0, 1.0)), (8, (0.0, 1.0)), (8, (2.0, 1.0))])
def test_senseless_settings_are_refused(size, scale):
    with pytest.raises(ValueError, match="size"):
        TrainTransform(size=size, scale=scale, flip=0.5, color=0)


def test_albumentations_is_imported_late_and_never_asks_the_network():
    script = (
        "import sys, ovd.data.loading.loader; assert 'albumentations' not in sys.modules;"
        "from ovd.data.loading.transforms import eval_transform; eval_transform(size=8);"
        "import os; assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script], env=environment, cwd=root, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_line_of_pixels_keeps_a_side():
    transform = TrainTransform(size=64, scale=(1, 1), flip=0, color=0)
    out, _ = transform(np.zeros((1, 1000, 3), np.uint8), Labels.empty(), 0)
    assert out.shape == (1, 64, 3)
