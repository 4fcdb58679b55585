"""Repair of JPEG files that lack only their end marker, two bytes that hold no pixel.

Cameras and downloads leave such files. A decoder fills missing rows with gray and does not report whether there were
any, so this is tested: if no continuation of the file changes a pixel, all rows are there. Missing refinements of a
progressive file are found in the headers of its scans.
"""

import hashlib
from io import BytesIO

from PIL import Image

from ovd.data.images.jpeg_segments import END, SCAN, START, segments

_FRAMES = (0xC0, 0xC1, 0xC2)
_RESTARTS = [bytes([0xFF, 0xD0 + number]) for number in range(8)]
_CONTINUATIONS = (
    *(b"", bytes(256), b"\x55" * 256, b"\xaa" * 256, b"\xfe" * 256),
    *(b"".join(restart + bits * 64 for restart in _RESTARTS) for bits in (b"\x55", b"\xaa")),
)
_NUM_COEFFICIENTS = 64


def repair_end(content: bytes) -> bytes | None:
    """Return the file with its end marker; None if it is not a JPEG file, has the marker, or lacks more than that."""
    if not content.startswith(START) or END in content[-64:] or not _has_all_scans(content):
        return None
    content = content.removesuffix(END[:1])  # or it would make a marker of the byte that follows
    try:
        decoded = (_hash_of_pixels(content + continuation + END) for continuation in _CONTINUATIONS)
        first = next(decoded)
        return content + END if all(other == first for other in decoded) else None
    except OSError:
        return None


def _hash_of_pixels(content: bytes) -> bytes:
    with Image.open(BytesIO(content), formats=("JPEG",)) as image:
        return hashlib.blake2b(image.tobytes()).digest()


def _has_all_scans(content: bytes) -> bool:
    """Whether the scans contain every coefficient of every component to its last bit."""
    components: set[int] = set()
    complete: dict[int, set[int]] = {}
    for marker, body, _ in segments(content):
        if marker in _FRAMES and len(body) > 5:
            components = set(body[6 : 6 + 3 * body[5] : 3])
        elif marker == SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            if bits & 15 == 0:
                for component in body[1 : 1 + 2 * body[0] : 2]:
                    complete.setdefault(component, set()).update(range(first, last + 1))
    return bool(components) and all(len(complete.get(component, ())) == _NUM_COEFFICIENTS for component in components)
