"""Decoding of image files to RGB pixels, with errors that name the fault."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ovd.data.images.image_file import MAX_PIXELS, ImageError, opened, read_file
from ovd.data.images.jpeg_end import repair_end
from ovd.data.images.jpeg_segments import jpeg_header
from ovd.data.images.orientation import UPRIGHT, orientation_of, shown_size
from ovd.data.images.pillow_warnings import SILENCED_WARNINGS
from ovd.data.images.sixteen_bits import has_wide_colors, is_inverted, rescale_used_bits, to_eight_bits
from ovd.fault import Fault
from ovd.format_count import format_count
from ovd.shapes import UInt8
from ovd.warn import warn

MAX_SCANS = 100
"""Maximum number of scans of a JPEG; a progressive one has about ten."""
_STEPS_OF_GRAY = {"L;2": 85, "L;4": 17}
"""Steps between the grays, from 0 to 255, of PNG files of 2 and 4 bits, by Pillow's name of the form."""
_REDUCTIONS = (8, 4, 2)  # JPEG decoders can divide the sides by these, leaving out higher frequencies

JpegDecoder = Callable[[bytes], UInt8[np.ndarray, "H W 3"] | None]
"""Function that decodes a JPEG file to RGB pixels; it returns None if it cannot."""


@dataclass(frozen=True)
class DecodedImage:
    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB pixels, which must not be written to."""
    unrotated: bool
    """Whether the EXIF rotation is left out, since only the stored sides agree with the annotation (F12, a repair)."""
    without_end: bool = False
    """Whether the file is a JPEG that lacks only its end marker (F9, a repair)."""
    reduction: int = 1
    """Factor, 1, 2, 4 or 8, by which the sides of the file's image are longer than those of `pixels`."""

    def repairs(self) -> list[Fault]:
        """Return the faults that were repaired."""
        repairs = [Fault("F12", "the EXIF rotation is not applied, as in the annotation")] if self.unrotated else []
        return repairs + (
            [Fault("F9", "the end marker is missing, but all rows are there")] if self.without_end else []
        )


def read_image(
    source: Path | bytes, *, expected_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image as `decode_image` does, and return its pixels, which are writable."""
    return decode_image(source, expected_size=expected_size, max_pixels=max_pixels).pixels.copy()


def read_images(paths: Sequence[Path]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the pixels of the images that can be read; at the end, a warning counts the others.

    Raises:
        ImageError: there are images, but none can be read; the error is that of the first.
    """
    unread = list[ImageError]()
    for path in paths:
        try:
            pixels = read_image(path)
        except ImageError as error:
            unread.append(error)
            continue
        yield pixels
    if unread and len(unread) == len(paths):
        raise unread[0]
    if unread:
        of = format_count(len(paths), "image")
        warn(f"{len(unread):,} of {of} cannot be read and are left out; the first: {unread[0]}", code=unread[0].code)


def decode_image(
    source: Path | bytes,
    *,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    longest_side: int | None = None,
    decode_jpeg: JpegDecoder | None = None,
) -> DecodedImage:
    """Decode a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000 file to RGB as a viewer shows it.

    The EXIF orientation is applied, transparent pixels are put over white, 16-bit values are reduced to 8 bits by the
    bits that are used (sixteen_bits.py), and the first image of an animation or of several pages is read. A JPEG may
    lack its end marker if all rows are there (jpeg_end.py).

    Args:
        source: a file or its bytes.
        expected_size: height and width in the annotation. If only the stored, unrotated sides agree with it, the stored
            pixels are returned.
        max_pixels: number of pixels above which an image is refused by its header, before memory is allocated.
        longest_side: longest side in pixels that the image will be resized to. A JPEG is then decoded to an eighth, a
            quarter or half of its sides if these are multiples and the longest stays at least this long. On average its
            pixels differ by less than 0.7 of 255 from the area means of the whole image; by less than 2.5 if only the
            width of the colors is halved in the file (4:2:2), since these are reduced at least as much as the
            brightness.
        decode_jpeg: decoder used instead of Pillow for JPEG files of three colors and one whole scan that are neither
            rotated nor reduced.

    Raises:
        ImageError: F8 missing; F9 empty, truncated or not an image; F10 too many bytes, pixels or scans; F12 another
            size than expected.
    """
    name = str(source) if isinstance(source, Path) else "image"
    content = read_file(source) if isinstance(source, Path) else source
    if not content:
        raise ImageError("F9", f"{name}: file is empty")

    without_end = False
    with SILENCED_WARNINGS, opened(BytesIO(content), name, max_pixels) as image:
        header = jpeg_header(content, MAX_SCANS)
        if header.num_scans > MAX_SCANS:
            raise ImageError(
                "F10", f"{name}: the JPEG has more than {MAX_SCANS} scans, which takes too long; save it again"
            )
        width, height = image.size
        wide = has_wide_colors(image)  # before reading metadata, for which Pillow decodes a PNG
        _scale_transparent_gray(image)
        orientation = orientation_of(image)
        unrotated = _is_unrotated((height, width), orientation, expected_size, name)
        reduction = 1 if header.is_lossless else _reduce(image, longest_side)
        is_plain = orientation == reduction == 1 and (image.format, image.mode) == ("JPEG", "RGB")
        if decode_jpeg is not None and is_plain and header.is_one_whole_scan(content):
            pixels = decode_jpeg(content)
            if pixels is not None:
                return DecodedImage(pixels, unrotated)
        try:
            image.load()
            rgb = to_rgb(rescale_used_bits(image, content) if wide else image)
            if is_inverted(image):
                rgb = ImageOps.invert(rgb)
        except OSError:
            if reduction > 1:  # the whole image shows what is damaged
                return decode_image(source, expected_size=expected_size, max_pixels=max_pixels)
            whole = repair_end(content)
            if whole is None:
                raise
            without_end = True
            rgb = to_rgb(Image.open(BytesIO(whole), formats=("JPEG",)))

    if orientation != 1 and not unrotated:
        rgb = rgb.transpose(UPRIGHT[orientation])
    return DecodedImage(np.asarray(rgb), unrotated, without_end, reduction)


def _scale_transparent_gray(image: Image.Image) -> None:
    """Scale the transparent gray of a PNG file of 2 or 4 bits, not decoded yet, like its pixels, as Pillow does not."""
    transparent, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if image.format == "PNG" and isinstance(transparent, int) and tiles:
        image.info["transparency"] = transparent * _STEPS_OF_GRAY.get(tiles[0].args, 1)


def _is_unrotated(
    stored_size: tuple[int, int], orientation: int, expected_size: tuple[int, int] | None, name: str
) -> bool:
    """Whether the annotation's height and width are those of the stored pixels, and not of the rotated image.

    Raises:
        ImageError: F12 they are those of neither.
    """
    shown = shown_size(*stored_size[::-1], orientation)
    if expected_size is None or shown == expected_size:
        return False
    if stored_size != expected_size:
        raise ImageError(
            "F12", f"{name}: height x width is {shown[0]} x {shown[1]}, the annotation says "
            f"{expected_size[0]} x {expected_size[1]}"
        )  # fmt: skip
    return True


def _reduce(image: Image.Image, longest_side: int | None) -> int:
    """Configure a JPEG that is not decoded yet to be decoded at reduced size, if possible, and return the factor.

    The sides have to be multiples of it, so that all pixels cover areas of the same size, and boxes stay exact.
    """
    if longest_side is None:
        return 1
    width, height = image.size
    for reduction in _REDUCTIONS:
        if max(width, height) >= reduction * longest_side and width % reduction == height % reduction == 0:
            reduced = image.draft(None, (width // reduction, height // reduction))  # None for other formats
            return 1 if reduced is None else reduction
    return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, with transparent pixels over white.

    Raises:
        ValueError: pixels have 32 bits, for which white is not defined.
    """
    if image.mode.startswith("I"):
        # 16-bit gray: convert() would clip at 255 instead of scaling.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"values from {values.min()} to {values.max()}; save the image with 8 or 16 bits")
        gray = to_eight_bits(values.astype(np.uint16))
        gray[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.mode == "F":
        raise ValueError("the values are floats, whose value for white is not known; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        white = Image.new("RGBA", shown.size, "white")
        return Image.alpha_composite(white, shown).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
