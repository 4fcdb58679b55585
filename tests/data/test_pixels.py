"""Images in memory: every form of one picture gives the same pixels, and ambiguous forms are refused."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_export import unchecked

from ovd.data.images.pixels import as_pixels, checked_size
from ovd.data.images.sixteen_bits import to_eight_bits

RGB = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
RGB[0, 0] = (0, 128, 255)
GRAY = RGB[..., 0]
ALPHA = np.where(np.arange(9) < 4, 255, 0).astype(np.uint8) * np.ones((7, 1), np.uint8)
RGBA = np.dstack([RGB, ALPHA])
OVER_WHITE = np.where(ALPHA[..., None] == 255, RGB, 255)
GRAY_RGB = np.dstack([GRAY] * 3)

FORMS: dict[str, tuple[Any, np.ndarray]] = {
    "RGB": (RGB, RGB),
    "PIL": (Image.fromarray(RGB), RGB),
    "tensor, channels first": (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
    "tensor, channels last": (torch.from_numpy(RGB), RGB),
    "array, channels first": (RGB.transpose(2, 0, 1), RGB),
    "floats to 1": (RGB.astype(np.float32) / 255, RGB),
    "half floats to 1": (torch.from_numpy(RGB).permute(2, 0, 1).half() / 255, RGB),
    "floats to 255": (RGB.astype(np.float64), RGB),
    "bfloat16 to 255": (torch.from_numpy(RGB).permute(2, 0, 1).bfloat16(), RGB),
    "int64": (torch.from_numpy(RGB).long(), RGB),
    "uint16 of 8 bits": (RGB.astype(np.uint16), RGB),
    "RGBA": (RGBA, OVER_WHITE),
    "PIL RGBA": (Image.fromarray(RGBA), OVER_WHITE),
    "RGBA, channels first": (torch.from_numpy(RGBA).permute(2, 0, 1), OVER_WHITE),
    "gray": (GRAY, GRAY_RGB),
    "PIL of 32-bit floats": (Image.fromarray(GRAY.astype(np.float32) / 255), GRAY_RGB),
    "PIL of 32-bit integers": (Image.fromarray(GRAY.astype(np.int32)), GRAY_RGB),
    "PIL gray": (Image.fromarray(GRAY), GRAY_RGB),
    "gray, one channel last": (GRAY[..., None], GRAY_RGB),
    "gray, one channel first": (torch.from_numpy(GRAY)[None], GRAY_RGB),
    "a view": (np.ascontiguousarray(RGB[:, ::-1])[:, ::-1], RGB),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_gives_its_pixels(form: str):
    given, expected = FORMS[form]
    before = given.copy() if isinstance(given, np.ndarray) else None
    pixels = as_pixels(given)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)
    if before is not None:
        np.testing.assert_array_equal(given, before)


def test_the_bytes_of_a_file_are_no_image():
    with unchecked(), pytest.raises(ValueError, match="a bytes is not an image; give a path, a PIL image"):
        as_pixels(b"\xff\xd8")  # type: ignore[arg-type]


def test_a_shape_that_could_be_either_is_channels_first_as_a_tensor_and_last_as_an_array():
    values = np.random.default_rng(1).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(as_pixels(values), values)
    np.testing.assert_array_equal(as_pixels(torch.from_numpy(values)), values.transpose(1, 2, 0))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bits_are_read_by_those_that_are_used(bits: int):
    values = (RGB.astype(np.uint16) << (bits - 8)) | ((1 << (bits - 8)) - 1)  # 255 becomes the largest value of `bits`
    np.testing.assert_array_equal(to_eight_bits(values), RGB)
    np.testing.assert_array_equal(as_pixels(values), RGB)
    gray = Image.fromarray(values[..., 2])
    assert gray.mode == "I;16"
    np.testing.assert_array_equal(as_pixels(gray), np.dstack([RGB[..., 2]] * 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"no pixels: its shape is \(0, 5, 3\)"),
        (Image.new("RGB", (0, 4)), "no pixels: 0 x 4"),
        (torch.zeros(1, 3, 8, 8), r"two or three dimensions; the shape of this one is \(1, 3, 8, 8\)"),
        (np.zeros((8, 8, 2)), r"1, 3 or 4 channels, first or last; .* \(8, 8, 2\)"),
        (np.zeros(5), "two or three dimensions"),
        (np.full((4, 4, 3), -0.5), "from -0.5 to -0.5; .* normalized"),
        (np.full((4, 4, 3), 256), "from 256 to 256"),
        (np.full((4, 4, 3), 1.0000001), "floats up to 1: too large for 0 to 1"),
        (np.full((4, 4, 3), 2.0), "floats up to 2: too large for 0 to 1"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.zeros((4, 4, 3), bool), "bool are not pixels"),
        (np.zeros((4, 4, 3), complex), "complex128 are not pixels"),
    ],
)
def test_what_is_no_picture_is_refused(given: Any, message: str):
    with pytest.raises(ValueError, match=message):
        as_pixels(given)


def test_sixteen_bits_of_the_other_byte_order_are_the_same_picture():
    values = RGB.astype(np.uint16) * 257
    np.testing.assert_array_equal(as_pixels(values.astype(">u2")), as_pixels(values))


def test_a_file_is_no_image():
    with unchecked(), pytest.raises(ValueError, match="a BytesIO is not an image; give a path"):
        as_pixels(io.BytesIO(b"x"))  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_power_of_two_needs_one_bit_more(bits: int):
    """The largest value is just beyond those of fewer bits; two bits more are the next step of cameras."""
    values = np.full((4, 4), 1 << bits, np.uint16)
    assert (as_pixels(values) == (1 << bits) >> (bits + 2 - 8)).all()
    assert (as_pixels(values - 1) == 255).all()


def test_the_smallest_size_is_32_pixels():
    assert checked_size(32) == 32
    for size in (31, 0, -64, True, 64.0):
        with unchecked(), pytest.raises(ValueError, match="a whole number of at least 32"):
            checked_size(size)  # type: ignore[arg-type]
