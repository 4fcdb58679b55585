"""Reading of image files, and opening with Pillow; every fault becomes an `ImageError`."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ovd.data.report import DataError

# Pillow reads dozens of formats, some with code that is seldom attacked or fixed. If Pillow is built without the
# decoder of one of these, such an image cannot be decoded (F9).
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024
PILLOWS_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
"""Number of pixels above which Pillow does not open an image."""


class ImageError(DataError):
    """An image that cannot be used; `code` is the fault's code, the message names the file and the reason."""


def read_file(path: Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: F8 missing; F9 unreadable, or not a regular file; F10 over 256 MiB, before memory is allocated.
    """
    with file_errors(path):
        check_file(path)
        return path.read_bytes()


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into an `ImageError` within a context."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError("F8", f"{path}: file is missing") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageError("F9", f"{path}: cannot be read: {error}") from error


def check_file(path: Path) -> int:
    """Check that a file may be opened, and return its size in bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("F9", f"{path}: not a regular file")
    if status.st_size > MAX_BYTES:
        raise ImageError("F10", f"{path}: the file has {status.st_size} bytes, more than {MAX_BYTES}")
    return status.st_size


@contextmanager
def opened(file: BufferedReader | BytesIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read its header; whatever Pillow raises within the context becomes an `ImageError`."""
    try:
        with Image.open(file, formats=ALLOWED_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("F10", f"{name}: the image has {height} x {width} pixels, more than {max_pixels}")
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        least = min(max_pixels, PILLOWS_MAX_PIXELS)
        raise ImageError("F10", f"{name}: the header states more than {least} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError("F9", f"{name}: not a {', '.join(ALLOWED_FORMATS)} image") from error
    except Exception as error:  # on broken bytes Pillow's decoders raise nearly anything, SyntaxError included
        reason = str(error) if isinstance(error, ValueError) and str(error) else repr(error)
        raise ImageError("F9", f"{name}: cannot be decoded: {reason}") from error
