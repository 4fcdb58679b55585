"""The parts of a batch on several ranks get the shape that the whole batch has in one process."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.data.loading.buckets import Shape
from ovd.data.loading.loader import mix_batches
from ovd.data.loading.padding import pad_images
from ovd.engine.step import pad_to_common_size
from ovd.structures import Batch, Targets

SHAPES = ((64, 32), (32, 64), (48, 48), (64, 64))
SIDES = st.tuples(st.integers(1, 64), st.integers(1, 64))
SIDES_OF_PART = st.lists(SIDES, max_size=2)


def loaded(sides: list[Shape], shapes: tuple[Shape, ...]) -> Batch:
    """Make a batch of images of these heights and widths, packed as by the loader."""
    images = [torch.randint(1, 256, (3, *of), dtype=torch.uint8) for of in sides]
    padded, sizes = pad_images(images, divisor=16, shapes=shapes)
    batch = Batch.without_pairs(padded, sizes, (Targets.empty(),) * len(sides), tuple(range(len(sides))))
    return replace(batch, shapes=shapes)


def mixed(annotated: list[Shape], pairs: list[Shape], shapes: tuple[Shape, ...]) -> Batch:
    """Make a batch of annotated images and pairs of these heights and widths, as the loader mixes them."""
    return next(mix_batches(iter([loaded(annotated, shapes)]), iter([loaded(pairs, ())])))


def on_all_ranks(batches: list[Batch]) -> list[Batch]:
    """Return the results of `of_one_size` on ranks with these batches."""
    asked: list[torch.Tensor] = []

    def largest(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return torch.stack(asked).amax(dim=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ovd.engine.step.world_size", lambda: len(batches))
        patch.setattr("ovd.engine.step.max_over_ranks", largest)
        for batch in batches:  # collect all ranks' requests, which need no answer
            pad_to_common_size(batch)
        return [pad_to_common_size(batch) for batch in batches]


@settings(deadline=None)
@given(st.lists(SIDES_OF_PART, min_size=2, max_size=4), st.sampled_from([(), SHAPES]))
def test_parts_have_the_shape_of_the_whole(parts, shapes):
    whole = loaded([sides for part in parts for sides in part], shapes)
    batches = [loaded(part, shapes) for part in parts]
    for before, after in zip(batches, on_all_ranks(batches), strict=True):
        assert after.images.shape[2:] == whole.images.shape[2:]
        if not before.image_ids:
            assert len(after.images) == 1
            continue
        assert torch.equal(after.sizes, before.sizes)
        for one, other, (height, width) in zip(before.images, after.images, before.sizes.tolist(), strict=True):
            assert torch.equal(other[:, :height, :width], one[:, :height, :width])
            assert other.count_nonzero() == 3 * height * width


@settings(deadline=None)
@given(st.lists(st.tuples(SIDES_OF_PART, SIDES_OF_PART), min_size=2, max_size=4), st.sampled_from([(), SHAPES]))
def test_parts_with_pairs_have_the_shape_of_the_whole(parts, shapes):
    """Only the annotated images have shapes: pairs are padded as little as possible, and then both to one size."""
    whole = mixed(
        [side for images, _ in parts for side in images], [side for _, pairs in parts for side in pairs], shapes
    )
    for after in on_all_ranks([mixed(images, pairs, shapes) for images, pairs in parts]):
        assert after.images.shape[2:] == whole.images.shape[2:]


def test_a_shape_that_holds_annotated_images_is_taken_beside_pairs():
    """The ranks' images have an upright and a flat shape, 64 x 64 together, but 48 x 48 holds all of them."""
    parts = [mixed([(40, 30)], [(16, 16)], SHAPES), mixed([(30, 40)], [(10, 60)], SHAPES)]
    assert [part.images.shape[2:] for part in parts] == [(64, 32), (32, 64)]
    assert [part.images.shape[2:] for part in on_all_ranks(parts)] == [(48, 64)] * 2


def test_pairs_without_annotated_images_are_padded_as_little_as_possible():
    parts = [mixed([], [(10, 30)], SHAPES), mixed([], [], SHAPES)]
    assert [part.images.shape[2:] for part in on_all_ranks(parts)] == [(16, 32)] * 2


def test_a_shape_that_no_group_has_is_not_taken():
    """The common shape is one that a group has: one rank's image needs an upright shape and the other's a square one,
    and the smallest that holds both is 64 x 64."""
    parts = [loaded([(50, 30)], SHAPES), loaded([(40, 40)], SHAPES)]
    assert [part.images.shape[2:] for part in parts] == [(64, 32), (48, 48)]
    assert [part.images.shape[2:] for part in on_all_ranks(parts)] == [(64, 64)] * 2


def test_images_larger_than_any_shape_have_their_own():
    parts = [loaded([(70, 20)], SHAPES), loaded([(40, 20)], SHAPES)]
    assert [part.images.shape[2:] for part in on_all_ranks(parts)] == [(80, 32)] * 2
