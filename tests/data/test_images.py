"""Reading of image files: the right, upright pixels of every format, or an error that names the fault."""

import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import image_edits
import numpy as np
import pytest
from encoded_images import encode
from photo import photo
from PIL import Image

from ovd.data.images.image_file import ImageError
from ovd.data.images.jpeg_end import repair_end
from ovd.data.images.jpeg_segments import JpegHeader, jpeg_header
from ovd.data.images.read import decode_image, read_image
from ovd.data.images.sizes import read_sizes

HEIGHT, WIDTH = 40, 60


def scene() -> np.ndarray:
    """A smooth picture without symmetry, so that JPEG keeps it and each rotation shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_lossless_files_give_the_very_pixels(tmp_path, format):
    content = encode(scene(), format)
    (tmp_path / "image").write_bytes(content)
    for source in (content, tmp_path / "image"):
        pixels = read_image(source, expected_size=(HEIGHT, WIDTH))
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, scene())


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_give_nearly_the_pixels(format):
    pixels = read_image(encode(scene(), format, quality=95), expected_size=None)
    assert np.abs(pixels.astype(int) - scene()).mean() < 3


# The pixels that a camera held that way stores, by the EXIF standard: the inverse of the correction.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    shown = scene()
    stored = STORED[orientation](shown)
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(image, "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(content, expected_size=(HEIGHT, WIDTH)), shown)
    decoded = decode_image(content, expected_size=(HEIGHT, WIDTH))
    assert not decoded.unrotated
    if orientation >= 5:
        decoded = decode_image(content, expected_size=(WIDTH, HEIGHT))
        assert decoded.unrotated
        np.testing.assert_array_equal(decoded.pixels, stored)


def test_another_size_than_the_annotations_is_an_error():
    content = encode(scene(), "PNG")
    for size in [(HEIGHT, WIDTH + 1), (WIDTH, HEIGHT)]:
        with pytest.raises(ImageError, match=rf"is 40 x 60, the annotation says {size[0]} x {size[1]}") as caught:
            read_image(content, expected_size=size)
        assert caught.value.code == "F12"


def test_every_mode_becomes_rgb():
    rgb = Image.fromarray(scene())
    gray = scene()[..., 0]
    black = Image.new("RGB", rgb.size)
    gray_rgb = np.repeat(gray[..., None], 3, axis=2)
    cases = {
        "gray": (encode(gray, "PNG"), gray_rgb, 0),
        "16-bit gray": (encode(gray.astype(np.uint16) * 257, "PNG"), gray_rgb, 0),
        "1 bit": (encode(gray > 99, "PNG"), np.where(gray_rgb > 99, 255, 0), 0),
        "palette": (encode(rgb.quantize(255), "PNG"), np.asarray(rgb.quantize(255).convert("RGB")), 0),
        "CMYK": (encode(rgb.convert("CMYK"), "JPEG", quality=95), scene(), 6),
        "opaque alpha": (encode(rgb.convert("RGBA"), "PNG"), scene(), 0),
        "animated": (encode(rgb, "WEBP", save_all=True, append_images=[black], lossless=True), scene(), 0),
    }  # fmt: skip
    for name, (content, expected, tolerance) in cases.items():
        pixels = read_image(content, expected_size=(HEIGHT, WIDTH))
        assert pixels.shape == (HEIGHT, WIDTH, 3), name
        assert np.abs(pixels.astype(int) - expected).mean() <= tolerance, name


def test_transparent_pixels_are_laid_over_white():
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 10:] = 255
    rgba = Image.fromarray(np.concatenate([scene(), alpha[..., None]], axis=-1))
    expected = scene()
    expected[:, :10] = 255
    np.testing.assert_array_equal(read_image(encode(rgba, "PNG"), expected_size=None), expected)
    palette = Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) // 30, (HEIGHT, 1)))
    palette = palette.convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    pixels = read_image(encode(palette, "PNG", transparency=0), expected_size=None)
    assert (pixels[:, :30] == 255).all()
    assert (pixels[:, 30:] == [0, 0, 255]).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_no_cut_of_a_jpeg_is_read_as_half_an_image(tmp_path, options):
    whole = encode(scene(), "JPEG", quality=90, **options)
    expected = read_image(whole, expected_size=None)
    path = tmp_path / "cut.jpg"
    num_refused = 0
    for end in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:end])
        try:
            pixels = read_image(path, expected_size=(HEIGHT, WIDTH))
        except ImageError as error:
            assert error.code == "F9"  # noqa: PT017
            assert str(path) in str(error)  # noqa: PT017
            num_refused += 1
        else:
            np.testing.assert_array_equal(pixels, expected)
        assert path.read_bytes() == whole[:end]
    assert num_refused > 140


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_blocks": 2}, {"optimize": True}]
)
def test_a_jpeg_that_lacks_its_end_marker_alone_is_read_and_one_that_lacks_more_is_not(mode, options):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT + 3, WIDTH + 5, 3)).astype(np.uint8)
    whole = encode(Image.fromarray(noise).convert(mode), "JPEG", quality=90, **options)
    expected = decode_image(whole)
    assert whole[-2:] == b"\xff\xd9"
    assert expected.repairs() == []
    for content in (whole[:-2], whole[:-1]):
        decoded = decode_image(content)
        np.testing.assert_array_equal(decoded.pixels, expected.pixels)
        assert decoded.repairs() == [("F9", "the end marker is missing, but all rows are there")]
    for cut in range(5, len(whole) - 20, 37):
        with pytest.raises(ImageError, match=r"cannot be decoded|not a JPEG"):
            read_image(whole[:-cut])
    assert repair_end(whole) is None


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    whole = encode(scene(), "JPEG", progressive=True, quality=90)
    scans = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for place in scans[1:]:
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_image(whole[:place])


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}, 0),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}, 9),
        ("AVIF", {"quality": 95}, 3),
        ("JPEG2000", {}, 0),
    ],
)
def test_further_formats_are_read_their_first_frame_or_page(tmp_path, format, options, tolerance):
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(scene(), format, **options))
    pixels = read_image(path, expected_size=(HEIGHT, WIDTH))
    assert np.abs(pixels.astype(int) - scene()).mean() <= tolerance
    assert read_sizes([path]) == [(HEIGHT, WIDTH)]


def test_tiff_of_16_bits_is_read_and_of_32_bits_only_where_they_are_16():
    values = np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    for dtype in (np.uint16, np.int32):
        pixels = read_image(encode(values.astype(dtype), "TIFF"))
        np.testing.assert_array_equal(pixels[..., 0], values >> 4)  # the values use 12 bits
    for array in (values * 1000, values - 1, values.astype(np.float32)):
        with pytest.raises(ImageError, match="save the image with 8 or 16 bits"):
            read_image(encode(array, "TIFF"))


def png_file(rows: Sequence[bytes], width: int, bits: int, color_type: int, transparent: Sequence[int] = ()) -> bytes:
    """Make a PNG file of packed rows; `transparent` is the color of the chunk tRNS, if it is to have one."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    trns = [b"tRNS" + struct.pack(f">{len(transparent)}H", *transparent)] if transparent else []
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (b"IHDR" + header, *trns, b"IDAT" + pixels, b"IEND")
    )


def sixteen_bit_file(values: np.ndarray, format: str, orientation: int = 1, transparent: Sequence[int] = ()) -> bytes:
    """Encode (H W C) values as PNG or TIFF, there with a fourth channel that is not alpha; Pillow writes 16 bits only
    for gray images."""
    height, width, channels = values.shape
    if format == "PNG":
        color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        return png_file([row.astype(">u2").tobytes() for row in values], width, 16, color_type, transparent)
    pixels = values.astype("<u2").tobytes()
    bits_at = 8 + len(pixels)
    fields = {
        256: width, 257: height, 258: bits_at, 259: 1, 262: 2, 273: 8, 274: orientation, 277: channels, 278: height,
        279: len(pixels),
    } | ({338: 0} if channels > 3 else {})  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
        for tag, value in fields.items()
    )
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    return b"II*\0" + struct.pack("<I", bits_at + len(bits)) + pixels + bits + directory


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_colors_of_16_bits_are_read_by_the_bits_that_are_used(format, bits):
    values = np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    content, expected = sixteen_bit_file(values, format), values >> (bits - 8)
    np.testing.assert_array_equal(read_image(content), expected)
    num_refused = 0
    for end in range(0, len(content), len(content) // 12):  # a cut file gives the whole image or an error
        try:
            np.testing.assert_array_equal(read_image(content[:end]), expected)
        except ImageError as error:
            assert error.code == "F9"  # noqa: PT017
            num_refused += 1
    assert num_refused > 10


@pytest.mark.parametrize("bits", [10, 16])
def test_a_fourth_color_of_16_bits_is_left_out(bits):
    """Pictures of satellites have infrared beside red, green and blue."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    np.testing.assert_array_equal(read_image(sixteen_bit_file(values, "TIFF")), values[..., :3] >> (bits - 8))


def test_colors_of_16_bits_with_transparency_are_laid_over_white():
    values = np.random.default_rng(0).integers(0, 1 << 12, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    values[..., 3] = 65535
    values[:, :10, 3] = 0
    for channels in ([0, 1, 2, 3], [0, 3]):
        expected = np.broadcast_to((values[..., channels[:-1]] >> 4).astype(np.uint8), (HEIGHT, WIDTH, 3)).copy()
        expected[:, :10] = 255
        np.testing.assert_array_equal(read_image(sixteen_bit_file(values[..., channels], "PNG")), expected)


@pytest.mark.parametrize("bits", [10, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_exactly_one_color_of_16_bits_is_transparent(channels, bits):
    """The color of a PNG's tRNS chunk has 16 bits, too: a neighbor that shares its high byte stays."""
    values = np.random.default_rng(0).integers(0, 1 << bits, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    for transparent in (0, 300):
        values[:, :10], values[:, 10:20] = transparent, transparent + 1
        expected = np.broadcast_to((values >> (bits - 8)).astype(np.uint8), (HEIGHT, WIDTH, 3)).copy()
        expected[(values == transparent).all(axis=-1)] = 255
        content = sixteen_bit_file(values, "PNG", transparent=[transparent] * channels)
        np.testing.assert_array_equal(read_image(content), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_exactly_one_gray_of_few_bits_is_transparent(bits):
    grays = np.arange(1 << bits)
    packed = np.packbits(np.unpackbits(grays.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()
    for transparent in grays.tolist():
        expected = np.where(grays == transparent, 255, grays * 255 // grays[-1])
        pixels = read_image(png_file([packed, packed], len(grays), bits, 0, [transparent]))
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected[:, None], (2, len(grays), 3)))


@pytest.mark.parametrize("bits", [12, 16])
def test_colors_of_16_bits_that_are_stored_turned_are_shown_upright(bits):
    shown = np.random.default_rng(0).integers(0, 1 << bits, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    for orientation, turn in STORED.items():
        content = sixteen_bit_file(turn(shown), "TIFF", orientation)
        np.testing.assert_array_equal(read_image(content), shown >> (bits - 8), str(orientation))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gray_tiff_in_which_0_is_white_is_turned_round(dtype):
    values = scene()[..., 0].astype(dtype) * (257 if dtype == np.uint16 else 1)
    values[0, 0] = np.iinfo(dtype).max
    content = bytearray(encode(values, "TIFF"))
    photometric = content.index(struct.pack("<HHI", 262, 3, 1))
    assert content[photometric + 8] == 1
    content[photometric + 8] = 0
    expected = 255 - (values >> (8 * values.itemsize - 8)).astype(np.uint8)
    np.testing.assert_array_equal(read_image(bytes(content)), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"x" * 99])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(ImageError) as caught:
        read_image(content, expected_size=None)
    assert caught.value.code == "F9"


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    for format in ("PPM", "EPS", "PCX", "TGA"):
        path = tmp_path / f"{format}.jpg"
        path.write_bytes(encode(scene(), format))
        with pytest.raises(ImageError, match="not a JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF, JPEG2000 image"):
            read_image(path, expected_size=None)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg: file is missing") as caught:
        read_image(tmp_path / "none.jpg", expected_size=None)
    assert caught.value.code == "F8"
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path, expected_size=None)
    assert caught.value.code == "F9"


def test_what_is_no_ordinary_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg: not a regular file") as caught:
        read_image(tmp_path / "pipe.jpg")
    assert caught.value.code == "F9"
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="1099511627776 bytes, more than 268435456") as caught:
        read_image(tmp_path / "sparse.jpg")
    assert caught.value.code == "F10"
    with pytest.raises(ImageError, match="cannot be read") as caught:
        read_image(tmp_path / "null\0.jpg")
    assert caught.value.code == "F9"


def png_header(height: int, width: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)
    )


@pytest.mark.parametrize(("height", "width"), [(60_000, 60_000), (10_000, 10_000), (9000, 9000)])
def test_decompression_bombs_are_refused_by_their_header(height, width):
    with pytest.raises(ImageError) as caught:
        read_image(png_header(height, width), expected_size=None)
    assert caught.value.code == "F10"


def test_the_pixel_cap_is_a_parameter():
    content = encode(scene(), "PNG")
    assert read_image(content, expected_size=None, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="40 x 60 pixels, more than 2399"):
        read_image(content, expected_size=None, max_pixels=HEIGHT * WIDTH - 1)


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    script = f"""
import resource
from pathlib import Path
from ovd.data.images.read import ImageError, read_image
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 100_000_000,) * 2)
try:
    read_image(Path({str(tmp_path / "bomb.png")!r}), expected_size=None)
except ImageError as error:
    print(error.code)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=300)
    assert done.stdout.strip() == "F10", done.stderr


def test_damaged_exif_does_not_lose_the_image_and_no_warning_escapes():
    content = encode(scene(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff", quality=95)
    assert read_image(content, expected_size=(HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH, 3)


def test_sizes_from_headers_are_those_of_the_decoded_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(scene())
    contents = {
        "a.jpg": encode(image, "JPEG", exif=exif),
        "b.png": encode(image, "PNG", exif=exif),
        "c.webp": encode(image, "WEBP", exif=exif),
        "d.bmp": encode(image, "BMP"),
        "e.png": encode(image, "PNG"),
        "f.png": with_late_exif(encode(image, "PNG"), exif),
        "g.jpg": b"",
        "h.jpg": b"no image",
        "i.gif": encode(image, "PCX"),
        "k.tif": encode(image, "TIFF", exif=exif),
        "l.tif": encode(image, "TIFF", exif=exif, compression="tiff_lzw"),
        "m.avif": encode(image, "AVIF", exif=exif),
        "j.jpg": encode(image, "JPEG")[:-30],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in (*contents, "missing.jpg")]
    for path, size in zip(paths, read_sizes(paths), strict=True):
        if isinstance(size, ImageError):
            with pytest.raises(ImageError) as caught:
                read_image(path)
            assert (caught.value.code, str(caught.value)) == (size.code, str(size))
        elif path.name != "j.jpg":  # the damage of j.jpg is behind the header
            assert read_image(path).shape[:2] == size
    assert read_sizes(paths[:6]) == [(WIDTH, HEIGHT)] * 3 + [(HEIGHT, WIDTH)] * 2 + [(WIDTH, HEIGHT)]
    assert read_sizes([]) == []


def with_late_exif(png: bytes, exif: Image.Exif) -> bytes:
    """Put EXIF data behind the pixels of a PNG."""
    data = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    end = png.rindex(b"IEND") - 4
    return png[:end] + chunk + png[end:]


def test_the_size_of_a_png_is_read_without_decoding_it(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode(scene(), "PNG"))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert read_sizes([tmp_path / "a.png"]) == [(HEIGHT, WIDTH)]


def test_the_size_of_a_bomb_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(scene(), "PNG"))
    (size,) = read_sizes([tmp_path / "a.png"], max_pixels=100)
    assert isinstance(size, ImageError)
    assert size.code == "F10"


@pytest.mark.parametrize(
    ("height", "width", "longest_side", "reduction"),
    [
        (240, 320, None, 1),
        (240, 320, 320, 1),
        (240, 320, 161, 1),
        (240, 320, 160, 2),
        (240, 320, 81, 2),
        (240, 320, 80, 4),
        (320, 240, 40, 8),
        (320, 240, 1, 8),
        (240, 316, 10, 4),
        (246, 320, 10, 2),
        (247, 320, 10, 1),
        (8, 8, 1, 8),
        (2, 1, 1, 1),
    ],
)
def test_a_jpeg_is_decoded_to_the_smallest_part_of_its_sides_that_will_do(height, width, longest_side, reduction):
    content = encode(image_edits.scene(height, width), "JPEG")
    decoded = decode_image(content, longest_side=longest_side, expected_size=(height, width))
    assert decoded.reduction == reduction
    assert decoded.pixels.shape == (height // reduction, width // reduction, 3)
    with pytest.raises(ImageError, match=f"height x width is {height} x {width}, the annotation says"):
        decode_image(content, longest_side=longest_side, expected_size=(height // 2, width))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize(
    ("quality", "subsampling", "limit"),
    [(95, "4:4:4", 0.4), (90, "4:2:0", 0.5), (75, "4:2:0", 0.65), (50, "4:2:0", 0.65), (90, "4:2:2", 2.5)],
)
def test_reduced_pixels_are_nearly_means_over_areas_of_all(reduction, quality, subsampling, limit):
    content = encode(photo(), "JPEG", quality=quality, subsampling=subsampling, progressive=True)
    found = decode_image(content, longest_side=600 // reduction).pixels
    areas = cv2.resize(read_image(content), (512 // reduction, 600 // reduction), interpolation=cv2.INTER_AREA)
    difference = found.astype(int) - areas
    assert found.shape == areas.shape
    assert np.abs(difference).mean() < limit
    assert np.percentile(np.abs(difference), 99) <= 12 * limit
    assert abs(difference.mean()) < 0.2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_turned_like_a_whole_one(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    y, x = np.mgrid[:48, :64]
    slopes = np.stack([x * 3, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)
    content = encode(slopes, "JPEG", quality=95, exif=exif)
    whole, reduced = decode_image(content).pixels, decode_image(content, longest_side=32).pixels
    means = whole.reshape(whole.shape[0] // 2, 2, whole.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(reduced - means).mean() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_modes_are_reduced(mode):
    content = encode(Image.fromarray(photo()).convert(mode), "JPEG")
    reduced = decode_image(content, longest_side=300)
    assert reduced.reduction == 2
    areas = cv2.resize(read_image(content), (256, 300), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.pixels.astype(int) - areas).mean() < 1


def test_only_jpegs_are_reduced():
    for format in ("PNG", "WEBP", "BMP", "GIF"):
        content = encode(image_edits.scene(64, 64), format)
        assert decode_image(content, longest_side=8).pixels.shape == (64, 64, 3)


def test_a_damaged_jpeg_is_told_of_alike_where_it_would_be_reduced():
    content = encode(photo(), "JPEG")
    repaired = decode_image(content[:-2], longest_side=75)
    assert repaired.without_end
    assert repaired.reduction == 1
    np.testing.assert_array_equal(repaired.pixels, read_image(content))
    for kept in (0.2, 0.6, 0.95):
        with pytest.raises(ImageError) as whole:
            decode_image(content[: int(kept * len(content))])
        with pytest.raises(ImageError) as reduced:
            decode_image(content[: int(kept * len(content))], longest_side=75)
        assert str(reduced.value) == str(whole.value)


def test_a_lossless_jpeg_which_cannot_be_reduced_is_read():
    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    # Pixels are coded as differences to the pixel before, the first one to 128. All are 0, coded as one 0 bit.
    frame = struct.pack(">BHHBBBB", 8, 64, 64, 1, 1, 0x11, 0)
    codes = bytes([0, 1, *[0] * 15, 0])
    content = b"".join(
        [b"\xff\xd8", segment(0xC3, frame), segment(0xC4, codes), segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))]
    )
    content += bytes(64 * 64 // 8) + b"\xff\xd9"
    decoded = decode_image(content, longest_side=8)
    np.testing.assert_array_equal(decoded.pixels, np.full((64, 64, 3), 128))
    assert decoded.reduction == 1


def test_a_jpeg_that_repeats_its_scans_without_end_is_refused():
    """A JPEG with very many scans is refused, since each scan costs the same time, however few bytes it has."""
    whole = encode(scene(), "JPEG", progressive=True, quality=60)
    last = whole.rindex(b"\xff\xda")
    scan = whole[last:-2]
    for repeats, is_read in ((20, True), (200, False)):
        content = whole[:-2] + scan * repeats + whole[-2:]
        if is_read:
            assert read_image(content).shape == (HEIGHT, WIDTH, 3)
            continue
        with pytest.raises(ImageError, match="the JPEG has more than 100 scans") as caught:
            read_image(content)
        assert caught.value.code == "F10"


def test_only_files_that_may_have_many_scans_are_searched_for_them():
    plain = encode(scene(), "JPEG")
    assert jpeg_header(plain + plain[plain.index(b"\xff\xda") :] * 200, 100).num_scans == 1
    assert jpeg_header(encode(scene(), "PNG"), 0) == JpegHeader()
    progressive = encode(scene(), "JPEG", progressive=True)
    assert jpeg_header(progressive, 5).num_scans == 6
    assert jpeg_header(progressive, 100).num_scans == progressive.count(b"\xff\xda") > 6


def test_filters_of_warnings_are_the_callers_after_threads_have_read_images():
    content = encode(scene(), "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            list(pool.map(lambda _: read_image(content), range(40)))
    assert warnings.filters == before


def test_the_callers_own_limit_of_pixels_holds_beyond_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # a limit above which Pillow only warns
    content = encode(scene(), "PNG")
    assert read_image(content, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match=f"{HEIGHT} x {WIDTH} pixels, more than {HEIGHT * WIDTH - 1}"):
        read_image(content, max_pixels=HEIGHT * WIDTH - 1)


def test_an_image_of_16_bits_says_what_is_missing_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    values = np.full((8, 8, 3), 4000, np.uint16)
    content = cv2.imencode(".png", values)[1].tobytes()
    with pytest.raises(ImageError, match="install opencv-python-headless, or save the image with 8 bits"):
        read_image(content)
