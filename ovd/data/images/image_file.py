"""Image files as bytes and opened by Pillow; whatever is wrong with one becomes an `ImageError`."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ovd.data.report import DataError

# Pillow reads dozens of formats, some through code that is seldom attacked or fixed. It may be built without the
# decoder of one of these; such an image is then one that cannot be decoded (F9).
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024
PILLOWS_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
"""Images with more pixels are not opened by Pillow."""


class ImageError(DataError):
    """An image that cannot be used; `code` says which fault it is, the message names the file and the reason."""


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: F8 missing; F9 cannot be read, or no ordinary file; F10 over 256 MiB, before memory is taken for it.
    """
    with file_errors(path):
        check_file(path)
        return path.read_bytes()


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turns what the file system raises into an ImageError."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError("F8", f"{path}: file is missing") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageError("F9", f"{path}: cannot be read: {error}") from error


def check_file(path: Path) -> int:
    """The size of a file in bytes, if it is one that may be opened."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("F9", f"{path}: not an ordinary file")
    if status.st_size > MAX_BYTES:
        raise ImageError("F10", f"{path}: {status.st_size} bytes are more than {MAX_BYTES}")
    return status.st_size


@contextmanager
def opened(file: BufferedReader | BytesIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
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
