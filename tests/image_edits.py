"""Edits of a good image file, each with the outcome it must have: these pixels, nearly these, or a refusal."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from encoded_images import encode
from PIL import Image

Rng = np.random.Generator
HEIGHT, WIDTH = 37, 52
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP", "JPEG2000")
LOSSY = ("JPEG", "WEBP", "AVIF", "GIF")


@dataclass
class Outcome:
    """The outcomes that are right: pixels within a mean difference, one of the fault codes, or either of them."""

    pixels: np.ndarray | None
    tolerance: float = 0.0
    codes: tuple[str, ...] = ()
    num_repairs: int = 0


Edit = Callable[[Rng], tuple[bytes, Outcome]]
"""A function that returns the bytes of a file, for an annotation of HEIGHT x WIDTH, and the outcome it must have."""


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)


def _options(format: str) -> dict:
    return {"WEBP": {"lossless": True}}.get(format, {})


def _lossless(rng: Rng) -> tuple[bytes, Outcome]:
    format = LOSSLESS[rng.integers(len(LOSSLESS))]
    return encode(scene(), format, **_options(format)), Outcome(scene())


def _lossy(rng: Rng) -> tuple[bytes, Outcome]:
    format = LOSSY[rng.integers(len(LOSSY))]
    options = {} if format == "GIF" else {"quality": int(rng.integers(88, 99))}
    return encode(scene(), format, **options), Outcome(scene(), 10 if format == "GIF" else 5)


def _mode(rng: Rng) -> tuple[bytes, Outcome]:
    image = Image.fromarray(scene())
    mode = ["L", "1", "P", "RGBA", "LA", "CMYK"][rng.integers(6)]
    changed = image.convert(mode)
    expected = np.asarray(changed.convert("RGB"))
    return encode(changed, "TIFF" if mode == "CMYK" else "PNG"), Outcome(expected, 1.0)


def _sixteen_bits(rng: Rng) -> tuple[bytes, Outcome]:
    bits = int(rng.choice([10, 12, 14, 16]))
    gray = np.linspace(0, 2**bits - 1, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = np.repeat((gray >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=2)
    return encode(gray, ["PNG", "TIFF"][rng.integers(2)]), Outcome(expected)


def _rotated(rng: Rng) -> tuple[bytes, Outcome]:
    """Store the image rotated but shown as annotated, or annotated as stored, which is counted."""
    orientation = int(rng.choice([3, 6, 8]))
    turns = {3: 2, 6: 1, 8: -1}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if rng.integers(2):
        stored = np.ascontiguousarray(np.rot90(scene(), turns))
        return encode(stored, "PNG", exif=exif), Outcome(scene())
    if orientation == 3:
        return encode(scene(), "PNG", exif=exif), Outcome(scene()[::-1, ::-1])
    return encode(scene(), "PNG", exif=exif), Outcome(scene(), num_repairs=1)


def _another_size(rng: Rng) -> tuple[bytes, Outcome]:
    height, width = HEIGHT + int(rng.integers(1, 30)), WIDTH - int(rng.integers(0, 30))
    return encode(scene(height, width), LOSSLESS[rng.integers(2)]), Outcome(None, codes=("F12",))


def _huge(rng: Rng) -> tuple[bytes, Outcome]:
    side = int(rng.choice([9_000, 60_000, 2**31 - 1]))
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(100)))
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed), Outcome(None, codes=("F9", "F10"))


def _no_image(rng: Rng) -> tuple[bytes, Outcome]:
    contents = (b"", b"<html>404</html>", bytes(500), rng.bytes(300), b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"RIFF")
    return contents[rng.integers(len(contents))], Outcome(None, codes=("F9",))


def _another_format(rng: Rng) -> tuple[bytes, Outcome]:
    return encode(scene(), ["PPM", "TGA", "PCX", "EPS"][rng.integers(4)]), Outcome(None, codes=("F9",))


def _cut(rng: Rng) -> tuple[bytes, Outcome]:
    """Cut the file short: it must give the whole image or an error, never half an image."""
    format = ["JPEG", "PNG", "BMP", "TIFF"][rng.integers(4)]
    whole = encode(scene(), format)
    expected = np.asarray(Image.open(BytesIO(whole)).convert("RGB"))
    return whole[: rng.integers(len(whole))], Outcome(expected, codes=("F9",), num_repairs=-1)


def _without_end(rng: Rng) -> tuple[bytes, Outcome]:
    whole = encode(scene(), "JPEG", quality=90, progressive=bool(rng.integers(2)))
    expected = np.asarray(Image.open(BytesIO(whole)).convert("RGB"))
    return whole[: -1 - int(rng.integers(2))], Outcome(expected, num_repairs=1)


EDITS: dict[str, Edit] = {
    edit.__name__.strip("_"): edit
    for edit in (
        _lossless, _lossy, _mode, _sixteen_bits, _rotated, _another_size, _huge, _no_image, _another_format, _cut,
        _without_end,
    )
}  # fmt: skip
