"""The segments of JPEG files, and what their headers say before anything is decoded."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

START = b"\xff\xd8"
SCAN = 0xDA
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_PROGRESSIVE_FRAMES = (0xC2, 0xC6, 0xCA, 0xCE)
FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
"""Markers of the header of the image itself, which has its sides and colors."""
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_IS_MARKER = ~np.isin(np.arange(256), [0x00, *range(0xD0, 0xD8)])
"""Of the byte that follows 0xFF: not 0, where the bits are those of 0xFF, nor a restart, which belongs among them."""
END = b"\xff\xd9"


class Segment(NamedTuple):
    """A part of a file's headers."""

    marker: int
    body: bytes
    end: int
    """Place in the file of the first byte after it."""


def is_lossless(content: bytes) -> bool:
    """Whether a file is a lossless JPEG, which holds differences of pixels in place of frequencies.

    Decoders cannot reduce such an image: libjpeg-turbo 3.1.4 crashes when it is asked to.
    """
    if not content.startswith(START):
        return False
    for marker, _, _ in segments(content):
        if marker in _LOSSLESS_FRAMES:
            return True
        if marker == SCAN:
            break
    return False


def is_one_whole_scan(content: bytes) -> bool:
    """Whether a JPEG file has one scan, of all colors, and ends with the marker after it.

    Another marker among its bits may be damage, of which some decoders say nothing and fill the rest with grey.
    """
    num_components = 0
    for marker, body, end in segments(content):
        if marker in FRAMES and len(body) > 5:
            num_components = body[5]
        elif marker == SCAN:
            bits = np.frombuffer(content, np.uint8)[end:]
            num_markers = int(np.count_nonzero(_IS_MARKER[bits[1:][bits[:-1] == 0xFF]]))
            return body[:1] == bytes([num_components]) and num_markers == 1 and content.endswith(END)
    return False


def has_many_scans(content: bytes, limit: int) -> bool:
    """Whether a JPEG file goes over its pixels more than `limit` times: each scan of a progressive image, or of one
    color, takes as long as another, and a file may repeat them."""
    if not content.startswith(START):
        return False
    num_scans, num_components, is_progressive = 0, 0, False
    for marker, body, _ in segments(content):
        if marker in FRAMES and len(body) > 5:
            num_components, is_progressive = body[5], marker in _PROGRESSIVE_FRAMES
        elif marker == SCAN and body:
            num_scans += 1
            if not is_progressive and body[0] == num_components:  # all in one scan: no other is looked for
                return False
            if num_scans > limit:
                return True
    return False


def segments(content: bytes) -> Iterator[Segment]:
    """Each segment; between them lie the bits of the scans, in which no marker occurs."""
    place = content.find(b"\xff", len(START))
    while 0 <= place < len(content) - 4:
        marker = content[place + 1]
        if marker in (0x00, 0xFF) or marker in _WITHOUT_LENGTH:
            place = content.find(b"\xff", place + (1 if marker == 0xFF else 2))
            continue
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        end = place + 2 + length
        yield Segment(marker, content[place + 4 : end], end)
        place = content.find(b"\xff", end)
