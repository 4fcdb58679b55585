"""OpenCV's JPEG decoder gives the same pixels and the same faults as Pillow's."""

from io import BytesIO
from unittest.mock import Mock

import numpy as np
import pytest
from encoded_images import encode
from photo import photo
from PIL import Image

from ovd.data.images.image_file import ImageError
from ovd.data.images.jpeg_pixels import jpeg_pixels
from ovd.data.images.jpeg_segments import JpegHeader, jpeg_header
from ovd.data.images.read import DecodedImage, decode_image


def outcome(content: bytes, **options) -> tuple[DecodedImage | None, str]:
    try:
        return decode_image(content, **options), ""
    except ImageError as error:
        return None, f"{error.code} {error}"


def assert_decoded_alike(content: bytes, **options) -> None:
    ours, our_fault = outcome(content, decode_jpeg=jpeg_pixels, **options)
    pillow, fault = outcome(content, **options)
    assert our_fault == fault
    if pillow is not None and ours is not None:
        np.testing.assert_array_equal(ours.pixels, pillow.pixels)
        assert ours.repairs() == pillow.repairs()
        assert ours.reduction == pillow.reduction


@pytest.mark.parametrize(("height", "width"), [(61, 83), (1, 1), (8, 300), (17, 16)])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 20, "subsampling": 2},
        {"subsampling": 1},
        {"subsampling": 0},
        {"restart_marker_blocks": 2},
    ],
    ids=str,
)
def test_pixels_are_those_of_pillow(height, width, options):
    content = encode(photo()[:height, :width], "JPEG", **options)
    pixels = jpeg_pixels(content)
    assert pixels is not None
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(BytesIO(content))))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_and_formats_are_decoded_as_before(mode):
    assert_decoded_alike(encode(Image.fromarray(photo()[:40, :60]).convert(mode), "JPEG"))
    assert_decoded_alike(encode(photo()[:40, :60], "PNG"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_shown_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(photo()[:40, :60], "JPEG", exif=exif)
    for expected_size in (None, (40, 60), (60, 40), (40, 61)):
        assert_decoded_alike(content, expected_size=expected_size)


@pytest.mark.parametrize("longest_side", [10, 30, 100])
def test_reduced_images_are_decoded_as_before(longest_side):
    assert_decoded_alike(encode(photo()[:80, :120], "JPEG"), longest_side=longest_side)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_a_cut_file_has_the_same_fault(options):
    whole = encode(photo()[:40, :60], "JPEG", quality=90, **options)
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        assert_decoded_alike(whole[:end])
    assert_decoded_alike(whole[:-2])


def test_changed_bytes_are_decoded_alike(capfd):
    whole = encode(photo()[:40, :60], "JPEG", quality=90)
    rng = np.random.default_rng(0)
    places = [*rng.integers(2, len(whole), 400), len(whole) - 1]
    for place in places:
        content = np.frombuffer(whole, np.uint8).copy()
        content[place] = rng.choice([0, 1, 0x55, 0xC4, 0xD0, 0xD9, 0xDA, 0xFF])
        assert_decoded_alike(content.tobytes())
    capfd.readouterr()  # drop libjpeg's own warnings


def test_what_is_left_to_pillow_does_not_come_here():
    plain = encode(photo()[:40, :60], "JPEG")
    is_asked = Mock(return_value=None)
    decode_image(plain, decode_jpeg=is_asked)
    is_asked.assert_called_once_with(plain)

    is_asked.reset_mock()
    progressive = encode(photo()[:40, :60], "JPEG", progressive=True)
    for content in (progressive, progressive[:-2], plain[:-2], plain[:-50], plain[:-50] + plain[-2:]):
        outcome(content, decode_jpeg=is_asked)
    is_asked.assert_called_once_with(plain[:-50] + plain[-2:])  # no marker shows that bits are missing
    assert jpeg_pixels(b"") is None
    assert jpeg_pixels(b"no image") is None


def test_the_header_of_a_file_says_where_the_bits_of_its_one_scan_begin():
    plain = encode(photo()[:40, :60], "JPEG")
    scan = plain.index(b"\xff\xda")
    header = jpeg_header(plain, 100)
    assert header == JpegHeader(num_scans=1, bits=scan + 2 + int.from_bytes(plain[scan + 2 : scan + 4], "big"))
    assert header.is_one_whole_scan(plain)
    assert not header.is_one_whole_scan(plain[:-1])
    assert not header.is_one_whole_scan(plain + b"\0")
    assert not header.is_one_whole_scan(plain[:-2] + b"\xff\xc4" + plain[-2:])
    assert header.is_one_whole_scan(plain[:-2] + b"\xff\xd0" + plain[-2:])  # a restart marker is part of the scan


def test_a_file_whose_colors_come_one_after_the_other_is_no_one_scan():
    plain = encode(photo()[:40, :60], "JPEG")
    scan = plain.index(b"\xff\xda")
    of_one_color = plain[:scan] + bytes([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0x55])
    assert jpeg_header(of_one_color + plain[scan:], 100) == JpegHeader(num_scans=2)
