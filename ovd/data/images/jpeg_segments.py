"""The segments of JPEG files, and what their headers say before anything is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class JpegHeader:
    """What a file says of its scans before anything is decoded; nothing but zeros where it is no JPEG file."""

    is_lossless: bool = False
    """It holds differences of pixels in place of frequencies. Decoders cannot reduce such an image: libjpeg-turbo 3.1.4
    crashes when it is asked to."""
    num_scans: int = 0
    """How often it goes over its pixels, counted to one more than was asked for. Each scan of a progressive image, or
    of one color, takes as long as another, and a file may repeat them. Behind one that completes the image none is
    looked for."""
    bits: int = 0
    """Place of the first byte behind the header of the first scan, if that has all colors; else 0."""

    def is_one_whole_scan(self, content: bytes) -> bool:
        """Whether the file has one scan, of all colors, and ends with the marker after it.

        Another marker among its bits may be damage, of which some decoders say nothing and fill the rest with grey.
        """
        if not self.bits or not content.endswith(END):
            return False
        bits = np.frombuffer(content, np.uint8)[self.bits :]
        return int(np.count_nonzero(_IS_MARKER[bits[1:][bits[:-1] == 0xFF]])) == 1


def jpeg_header(content: bytes, max_scans: int) -> JpegHeader:
    """Goes through the headers of a file once, no further than one scan more than `max_scans`."""
    is_lossless, is_progressive, num_components, num_scans, bits = False, False, 0, 0, 0
    for marker, body, end in segments(content) if content.startswith(START) else ():
        if marker in FRAMES:
            is_lossless |= num_scans == 0 and marker in _LOSSLESS_FRAMES
            if len(body) > 5:
                num_components, is_progressive = body[5], marker in _PROGRESSIVE_FRAMES
        elif marker == SCAN and body:
            num_scans += 1
            has_all_colors = body[0] == num_components
            if num_scans == 1 and has_all_colors:
                bits = end
            if num_scans > max_scans or (has_all_colors and not is_progressive):
                break
    return JpegHeader(is_lossless, num_scans, bits)


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
