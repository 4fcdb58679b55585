"""Reading an image file into RGB pixels, or its size from its header; the error names what is wrong with it."""

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ovd.data.images.jpeg_end import with_end
from ovd.data.images.jpeg_segments import jpeg_header
from ovd.data.images.sixteen_bits import has_wide_colors, is_inverted, to_eight_bits, with_used_bits
from ovd.data.report import DataError
from ovd.fault import Fault
from ovd.shapes import UInt8

# Pillow reads dozens of formats, some through code that is seldom attacked or fixed. It may be built without the
# decoder of one of these; such an image is then one that cannot be decoded (F9).
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024
MAX_SCANS = 100
"""Of a progressive JPEG, which has about ten."""
PILLOWS_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
"""Images with more pixels are not opened by Pillow."""

_SIZE_THREADS = 8
_SIZES_IN_FLIGHT = 4096

_PNG_SIGNATURE_BYTES = 8
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")

_REDUCTIONS = (8, 4, 2)  # what JPEG decoders can divide the sides by: they leave out the higher frequencies

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


JpegDecoder = Callable[[bytes], UInt8[np.ndarray, "H W 3"] | None]
"""The RGB pixels of a JPEG file; None if it cannot be decoded."""


class ImageError(DataError):
    """An image that cannot be used; `code` says which fault it is, the message names the file and the reason."""


@dataclass(frozen=True)
class DecodedImage:
    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB; not to be written to."""
    unrotated: bool
    """True where the sides agree with the annotation only when the EXIF rotation is not applied (F12, a repair)."""
    without_end: bool = False
    """True for a JPEG that lacks its end marker and nothing else (F9, a repair)."""
    reduction: int = 1
    """The sides of the file's image are those of `pixels` times 1, 2, 4 or 8."""

    def repairs(self) -> list[Fault]:
        """What was repaired."""
        repairs = [Fault("F12", "EXIF rotation not applied, as in the annotation")] if self.unrotated else []
        return repairs + ([Fault("F9", "the end marker is missing, all rows are there")] if self.without_end else [])


def read_image(
    source: Path | bytes, *, expected_size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels alone of `decode_image`, which may be written to."""
    return decode_image(source, expected_size=expected_size, max_pixels=max_pixels).pixels.copy()


def decode_image(
    source: Path | bytes,
    *,
    expected_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    longest_side: int | None = None,
    decode_jpeg: JpegDecoder | None = None,
) -> DecodedImage:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000 file to RGB as a viewer shows it.

    The EXIF orientation is applied, transparent pixels are laid over white, values of 16 bits are brought to 8 by the
    bits that are used (sixteen_bits.py), and of an animation or of several pages the first is read. A JPEG may lack its
    end marker, as long as all rows are there (jpeg_end.py).

    Args:
        source: a file or its bytes.
        expected_size: height and width that the annotation gives. Where only the stored, unrotated sides agree with
            it, the stored pixels are returned.
        max_pixels: larger images are refused by their header, before memory is taken for them.
        longest_side: in pixels, to which the image will be resized. A JPEG is then decoded to an eighth, a quarter or
            half of its sides, where these are multiples and the longest does not become less than this. The pixels are
            within 0.7 of 255, in the mean, of the means over areas of the whole image; within 2.5 where the file has
            colors of half the width alone (4:2:2), since these are not reduced by less than the brightness is.
        decode_jpeg: takes Pillow's place for JPEG files of three colors and one whole scan that are neither turned nor
            reduced.

    Raises:
        ImageError: F8 missing; F9 empty, truncated or not an image; F10 too many bytes or pixels; F12 another size
            than expected.
    """
    name = str(source) if isinstance(source, Path) else "image"
    content = read_file(source) if isinstance(source, Path) else source
    if not content:
        raise ImageError("F9", f"{name}: file is empty")

    without_end = False
    with _REMARKS, _opened(BytesIO(content), name, max_pixels) as image:
        header = jpeg_header(content, MAX_SCANS)
        if header.num_scans > MAX_SCANS:
            raise ImageError("F10", f"{name}: a JPEG of more than {MAX_SCANS} scans, which takes long; save it again")
        width, height = image.size
        wide = has_wide_colors(image)  # before the metadata, for which Pillow decodes a PNG
        orientation = _orientation(image)
        unrotated = _is_unrotated((height, width), orientation, expected_size, name)
        reduction = 1 if header.is_lossless else _reduce(image, longest_side)
        is_plain = orientation == reduction == 1 and (image.format, image.mode) == ("JPEG", "RGB")
        if decode_jpeg is not None and is_plain and header.is_one_whole_scan(content):
            pixels = decode_jpeg(content)
            if pixels is not None:
                return DecodedImage(pixels, unrotated)
        try:
            image.load()
            rgb = to_rgb(with_used_bits(image, content) if wide else image)
            if is_inverted(image):
                rgb = ImageOps.invert(rgb)
        except OSError:
            if reduction > 1:  # what is damaged is found in the whole image
                return decode_image(source, expected_size=expected_size, max_pixels=max_pixels)
            whole = with_end(content)
            if whole is None:
                raise
            without_end = True
            rgb = to_rgb(Image.open(BytesIO(whole), formats=("JPEG",)))

    if orientation != 1 and not unrotated:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return DecodedImage(np.asarray(rgb), unrotated, without_end, reduction)


def _is_unrotated(
    stored_size: tuple[int, int], orientation: int, expected_size: tuple[int, int] | None, name: str
) -> bool:
    """Whether the annotation's height and width are those of the stored pixels, and not of the image upright.

    Raises:
        ImageError: F12, they are neither.
    """
    shown_size = _shown_size(*stored_size[::-1], orientation)
    if expected_size is None or shown_size == expected_size:
        return False
    if stored_size != expected_size:
        raise ImageError(
            "F12", f"{name}: height x width is {shown_size[0]} x {shown_size[1]}, the annotation says "
            f"{expected_size[0]} x {expected_size[1]}"
        )  # fmt: skip
    return True


def read_sizes(
    paths: Sequence[Path], *, expected: Sequence[tuple[int, int]] | None = None, max_pixels: int = MAX_PIXELS
) -> list[tuple[int, int] | ImageError]:
    """Height and width of each image as `decode_image` would return it, from the headers; or why it cannot be used.

    The errors are those of `decode_image`; damage after a header is found when the image is decoded.

    Args:
        expected: height and width that the annotation gives to each. Another size is no error; where only the stored,
            unrotated sides agree with it, these are returned.
    """

    def read(path: Path, expected_size: tuple[int, int] | None) -> tuple[int, int] | ImageError:
        try:
            shown_size, stored_size = _read_size(path, max_pixels)
        except ImageError as error:
            return error
        return stored_size if stored_size == expected_size else shown_size

    sizes: list[tuple[int, int] | ImageError] = []
    with _REMARKS, ThreadPoolExecutor(_SIZE_THREADS) as pool:
        for start in range(0, len(paths), _SIZES_IN_FLIGHT):
            part = slice(start, start + _SIZES_IN_FLIGHT)
            sizes += pool.map(read, paths[part], [None] * len(paths[part]) if expected is None else expected[part])
    return sizes


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: F8 missing; F9 cannot be read, or no ordinary file; F10 over 256 MiB, before memory is taken for it.
    """
    with _file_errors(path):
        _check_file(path)
        return path.read_bytes()


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turns what the file system raises into an ImageError."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError("F8", f"{path}: file is missing") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageError("F9", f"{path}: cannot be read: {error}") from error


def _check_file(path: Path) -> int:
    """The size of a file in bytes, if it is one that may be opened."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("F9", f"{path}: not an ordinary file")
    if status.st_size > MAX_BYTES:
        raise ImageError("F10", f"{path}: {status.st_size} bytes are more than {MAX_BYTES}")
    return status.st_size


class _Remarks:
    """A context without Pillow's remarks on odd metadata, and on sizes, which are checked here: what matters raises.

    Filters of warnings belong to the process. So the first thread that comes silences them, and the last that leaves
    puts back what there was: threads that did so each for itself could leave another's behind. In a process that is
    forked meanwhile nobody is inside.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_inside = 0
        self._filters: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0 and self._filters is not None:
                self._filters.__exit__(None, None, None)
                self._filters = None

    def forget(self) -> None:
        """Begin anew, in a forked process."""
        self._lock = Lock()
        if self._num_inside and self._filters is not None:
            self._filters.__exit__(None, None, None)
        self._num_inside, self._filters = 0, None


_REMARKS = _Remarks()
os.register_at_fork(after_in_child=_REMARKS.forget)


@contextmanager
def _opened(file: BufferedReader | BytesIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is read; whatever Pillow raises until the block ends becomes an ImageError."""
    try:
        with Image.open(file, formats=ALLOWED_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("F10", f"{name}: {height} x {width} pixels are more than {max_pixels}")
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        least = min(max_pixels, PILLOWS_MAX_PIXELS)
        raise ImageError("F10", f"{name}: its header says more than {least} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError("F9", f"{name}: not a {', '.join(ALLOWED_FORMATS)} image") from error
    except Exception as error:  # on broken bytes Pillow's decoders raise nearly anything, SyntaxError included
        reason = str(error) if isinstance(error, ValueError) and str(error) else repr(error)
        raise ImageError("F9", f"{name}: cannot be decoded: {reason}") from error


def _read_size(path: Path, max_pixels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width as a viewer shows the image, and as it is stored."""
    with _file_errors(path):
        if _check_file(path) == 0:
            raise ImageError("F9", f"{path}: file is empty")
        with path.open("rb") as file, _opened(file, str(path), max_pixels) as image:
            width, height = image.size
            if image.format == "PNG" and not _has_late_metadata(path):
                # Pillow would decode the pixels to look for metadata after them.
                orientation = _orientation(image, Image.Image.getexif)
            else:
                orientation = _orientation(image)
            return _shown_size(width, height, orientation), (height, width)


def _has_late_metadata(path: Path) -> bool:
    """Whether a PNG file has metadata after its first pixels, where it is legal but rare."""
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE_BYTES)
        has_pixels = False
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            has_pixels |= kind == b"IDAT"
            if has_pixels and kind in _PNG_METADATA:
                return True
            file.seek(length + 4, 1)  # over the content and its checksum
    return False


def _reduce(image: Image.Image, longest_side: int | None) -> int:
    """Makes a JPEG that is not decoded yet be decoded to a part of its sides, if it can be; what divides them.

    The sides have to be multiples, so that a pixel at the border stands for as many as any other, and boxes stay exact.
    """
    if longest_side is None:
        return 1
    width, height = image.size
    for reduction in _REDUCTIONS:
        if max(width, height) >= reduction * longest_side and width % reduction == height % reduction == 0:
            reduced = image.draft(None, (width // reduction, height // reduction))  # None for other formats
            return 1 if reduced is None else reduction
    return 1


def _shown_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Height and width after the EXIF rotation."""
    return (width, height) if orientation >= 5 else (height, width)


def _orientation(
    image: Image.Image, read_exif: Callable[[Image.Image], Image.Exif] = lambda image: image.getexif()
) -> int:
    """1 (upright) to 8; damaged EXIF data counts as none, since the pixels are sound."""
    if image.format == "TIFF":  # Pillow turns these itself, their size too
        return 1
    try:
        orientation = read_exif(image).get(_EXIF_ORIENTATION, 1)
    except Exception:  # the EXIF parser raises as freely as the decoders
        return 1
    return orientation if orientation in _UPRIGHT else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, its transparent pixels over white.

    Raises:
        ValueError: pixels of 32 bits, of which nothing says what is white.
    """
    if image.mode.startswith("I"):
        # 16-bit grey: convert() would clip at 255 instead of scaling.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"values from {values.min()} to {values.max()}; save the image with 8 or 16 bits")
        return Image.fromarray(to_eight_bits(values.astype(np.uint16))).convert("RGB")
    if image.mode == "F":
        raise ValueError("values are floats, and nothing says which is white; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        white = Image.new("RGBA", shown.size, "white")
        return Image.alpha_composite(white, shown).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
