"""Reading of image sizes from headers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ovd.data.images.image_file import MAX_PIXELS, ImageError, check_file, file_errors, opened
from ovd.data.images.orientation import orientation_of, shown_size
from ovd.data.images.pillow_warnings import SILENCED_WARNINGS

_SIZE_THREADS = 8
_SIZES_IN_FLIGHT = 4096
_PNG_SIGNATURE_BYTES = 8
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")


def read_sizes(
    paths: Sequence[Path], *, expected: Sequence[tuple[int, int]] | None = None, max_pixels: int = MAX_PIXELS
) -> list[tuple[int, int] | ImageError]:
    """Read height and width of each image, as `decode_image` would return it, from its header; or return its error.

    The errors are those of `decode_image`; damage after a header is found when the image is decoded.

    Args:
        expected: height and width of each image in the annotations. Another size is not an error; if only the stored,
            unrotated sides agree with it, these are returned.
    """

    def read(path: Path, expected_size: tuple[int, int] | None) -> tuple[int, int] | ImageError:
        try:
            shown, stored = _read_size(path, max_pixels)
        except ImageError as error:
            return error
        return stored if stored == expected_size else shown

    sizes: list[tuple[int, int] | ImageError] = []
    with SILENCED_WARNINGS, ThreadPoolExecutor(_SIZE_THREADS) as pool:
        for start in range(0, len(paths), _SIZES_IN_FLIGHT):
            part = slice(start, start + _SIZES_IN_FLIGHT)
            sizes += pool.map(read, paths[part], [None] * len(paths[part]) if expected is None else expected[part])
    return sizes


def _read_size(path: Path, max_pixels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return height and width of the image as a viewer shows it, and as it is stored."""
    with file_errors(path):
        if check_file(path) == 0:
            raise ImageError("F9", f"{path}: file is empty")
        with path.open("rb") as file, opened(file, str(path), max_pixels) as image:
            width, height = image.size
            if image.format == "PNG" and not _has_late_metadata(path):
                # Pillow would decode the pixels to look for metadata after them.
                orientation = orientation_of(image, Image.Image.getexif)
            else:
                orientation = orientation_of(image)
            return shown_size(width, height, orientation), (height, width)


def _has_late_metadata(path: Path) -> bool:
    """Whether a PNG file has metadata after its first pixels, which is legal but rare."""
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE_BYTES)
        has_pixels = False
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            has_pixels |= kind == b"IDAT"
            if has_pixels and kind in _PNG_METADATA:
                return True
            file.seek(length + 4, 1)  # skips the content and its checksum
    return False
