"""Batches of images of similar shape: no image is lost, little is padded, and the order depends on seed and step
alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd.data.loading.buckets import group_into_batches, padded_shape, round_up, shape_groups
from ovd.data.loading.order import TrainOrder


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 9),
    offset=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_nothing_is_lost_and_batches_are_of_one_group_but_at_the_ends(counts, batch_size, offset, seed):
    groups = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(seed).permutation(len(groups))
    sorted_out = group_into_batches(
        order, groups[order], batch_size=batch_size, offset=offset, generator=np.random.default_rng(seed)
    )
    assert sorted(sorted_out.tolist()) == list(range(len(groups)))
    first = -offset % batch_size
    whole = [sorted_out[at : at + batch_size] for at in range(first, len(groups) - batch_size + 1, batch_size)]
    mixed = sum(len(set(groups[batch].tolist())) > 1 for batch in whole)
    assert mixed <= len(counts)  # the rest of each group fills at most one mixed batch


def test_an_order_with_groups_stays_a_function_of_seed_and_step():
    groups = np.arange(50) % 3

    def order(first_sample: int = 0) -> TrainOrder:
        return TrainOrder(
            num_images=50, repeat=np.ones(50), seed=1, batch_size=4, groups=groups, first_sample=first_sample
        )

    one = order()
    stream = [one.batch(step) for step in range(40)]
    for step in (39, 3, 20):
        assert order().batch(step) == stream[step]
    images = [image for batch in stream for image, _ in batch]
    for epoch in range(3):
        assert sorted(images[50 * epoch : 50 * epoch + 50]) == list(range(50))
    of_one_group = [len({int(groups[image]) for image, _ in batch}) == 1 for batch in stream]
    assert sum(of_one_group) > 0.7 * len(stream)
    later = order(first_sample=10)
    of_one_group = [len({int(groups[image]) for image, _ in later.batch(step)}) == 1 for step in range(30)]
    assert sum(of_one_group) > 0.7 * len(of_one_group)


@pytest.mark.parametrize("divisor", [1, 7, 32])
def test_rounding_up_gives_the_least_multiple_that_is_no_shorter(divisor):
    lengths = np.arange(100).reshape(20, 5)
    rounded = round_up(lengths, divisor)
    assert (rounded % divisor == 0).all()
    assert ((rounded >= lengths) & (rounded < lengths + divisor)).all()
    assert rounded.tolist() == [[round_up(length, divisor) for length in row] for row in lengths.tolist()]


def test_groups_and_shapes_pad_little():
    """Groups and shapes keep the padding small for sizes as in COCO: most 640 x 480, some upright, and a spread."""
    generator = np.random.default_rng(0)
    long, short = np.full(3000, 640), generator.choice([480, 427, 426, 360, 425, 512, 640], 3000)
    upright = generator.random(3000) < 0.25
    sizes = np.where(upright[:, None], np.stack([long, short], 1), np.stack([short, long], 1)).astype(np.int64)
    groups, shapes = shape_groups(sizes, 8, size=640, divisor=32)
    assert len(shapes) <= 8
    order = TrainOrder(num_images=3000, repeat=np.ones(3000), seed=0, batch_size=16, groups=groups)
    padded = used = 0
    for step in range(180):
        batch = np.array([sizes[image] for image, _ in order.batch(step)])
        tallest, widest = (-(-batch.max(axis=0) // 32) * 32).tolist()
        height, width = padded_shape(tallest, widest, shapes)
        padded += len(batch) * height * width
        used += batch.prod(axis=1).sum()
    assert padded / used < 1.07


@pytest.mark.parametrize("scale", [0.5, 1.25, 2.0])
def test_the_shapes_hold_every_batch_of_images_resized_by_any_scale(scale):
    sizes = np.array([[480, 640], [640, 480], [640, 427], [333, 500]], np.int64)
    _, shapes = shape_groups(sizes, 2, size=640, largest_scale=scale, divisor=32)
    assert len(shapes) <= 3
    for factor in (0.3 * scale, 0.77 * scale, scale):
        resized = np.minimum(np.ceil(sizes * (640 * factor / sizes.max(axis=1, keepdims=True))), 640)
        for rows in ([0], [3], [1, 2], [0, 1], [0, 1, 2, 3]):
            height, width = (-(-resized[rows].max(axis=0).astype(int) // 32) * 32).tolist()
            assert padded_shape(height, width, shapes) in shapes


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 40), (128, 64)), ((130, 30), (160, 32)), ((200, 30), (200, 30)), ((128, 64), (128, 64))],
)
def test_the_smallest_shape_that_holds_a_batch_is_taken(size, expected):
    height, width = size
    assert padded_shape(height, width, ((128, 64), (128, 128), (160, 32))) == expected


def test_no_images():
    groups, shapes = shape_groups(np.zeros((0, 2), np.int64), 4, size=64, divisor=32)
    assert (groups.tolist(), shapes) == ([], ())
    empty = np.zeros(0, np.int64)
    generator = np.random.default_rng(0)
    assert group_into_batches(empty, empty, batch_size=3, offset=1, generator=generator).tolist() == []


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=7), st.integers(1, 4))
def test_groups_are_stretches_of_ratios_with_the_fewest_padded_pixels(sides, num_groups):
    sizes = np.array(sides, np.int64) * 10
    groups, shapes = shape_groups(sizes, num_groups, size=120, divisor=8)
    resized = -(-np.ceil(sizes * (120 / sizes.max(axis=1, keepdims=True))).astype(np.int64) // 8) * 8
    cost = 0
    for image, group in enumerate(groups.tolist()):
        height, width = shapes[group]
        assert resized[image, 0] <= height
        assert resized[image, 1] <= width
        cost += height * width
    order = np.argsort(resized[:, 1] / resized[:, 0], kind="stable")
    least = np.inf
    for number in range(min(num_groups, len(sizes))):
        for cuts in itertools.combinations(range(1, len(sizes)), number):
            parts = np.split(resized[order], cuts)
            least = min(least, sum(len(part) * part.max(axis=0).prod() for part in parts))
    assert cost == least
