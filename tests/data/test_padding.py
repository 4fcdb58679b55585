"""Images of several sizes in one batch: each at the top left, in the smallest allowed shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.data.loading.padding import pad_images

SIDES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=4)


@settings(deadline=None)
@given(SIDES, st.sampled_from([1, 8, 32]))
def test_every_image_is_at_the_top_left_and_nothing_beside_it(sides, divisor):
    images = [torch.randint(1, 256, (3, *of), dtype=torch.uint8) for of in sides]
    padded, sizes = pad_images(images, divisor=divisor)
    assert padded.dtype == torch.uint8
    assert sizes.tolist() == [list(of) for of in sides]
    for axis in (0, 1):
        largest = max((of[axis] for of in sides), default=1)
        side = padded.shape[2 + axis]
        assert side % divisor == 0
        assert largest <= side < largest + divisor
    for image, place, (height, width) in zip(images, padded, sides, strict=True):
        assert torch.equal(place[:, :height, :width], image)
        assert (place > 0).sum() == image.numel()


@pytest.mark.parametrize("trimmed", [0, 1])
def test_images_with_the_colors_of_a_pixel_beside_each_other_are_padded_alike(trimmed):
    decoded = [torch.randint(1, 256, sides, dtype=torch.uint8) for sides in ((9, 20, 3), (15, 4, 3), (2, 2, 3))]
    images = [pixels[: len(pixels) - trimmed, trimmed:].permute(2, 0, 1) for pixels in decoded]
    padded, sizes = pad_images(images, divisor=8)
    expected, expected_sizes = pad_images([image.contiguous() for image in images], divisor=8)
    assert torch.equal(padded, expected)
    assert torch.equal(sizes, expected_sizes)
    assert padded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shapes", "expected"), [((), (16, 24)), (((32, 24), (16, 32)), (16, 32)), (((16, 16),), (16, 24))]
)
def test_the_smallest_allowed_shape_that_holds_the_images_is_taken(shapes, expected):
    images = [torch.ones(3, 9, 20, dtype=torch.uint8), torch.ones(3, 15, 3, dtype=torch.uint8)]
    padded, _ = pad_images(images, divisor=8, shapes=shapes)
    assert padded.shape == (2, 3, *expected)
