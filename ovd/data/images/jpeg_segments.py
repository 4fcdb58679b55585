"""Parsing of the segments and headers of JPEG files, without decoding them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

START = b"\xff\xd8"
SCAN = 0xDA
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_PROGRESSIVE_FRAMES = (0xC2, 0xC6, 0xCA, 0xCE)
FRAMES = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
"""Markers of the frame header, which holds the image's sides and colors."""
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_IS_MARKER = ~np.isin(np.arange(256), [0x00, *range(0xD0, 0xD8)])
"""Whether a byte after 0xFF makes a marker: 0 does not, as it escapes 0xFF, and restarts belong among the bits."""
END = b"\xff\xd9"


class Segment(NamedTuple):
    """A segment of a file's headers."""

    marker: int
    body: bytes
    end: int
    """Offset in the file of the first byte after the segment."""


@dataclass(frozen=True)
class JpegHeader:
    """Properties of a file's scans, known before decoding; all zero for a file that is not JPEG."""

    is_lossless: bool = False
    """Whether the file holds differences of pixels instead of frequencies. Decoders cannot reduce such an image:
    libjpeg-turbo 3.1.4 crashes on the attempt."""
    num_scans: int = 0
    """Number of scans, counted up to one more than `max_scans` of `jpeg_header`. Each scan of a progressive image, or
    of one color, takes as long as another, and a file may repeat them. Scans after one that completes the image are
    not counted."""
    bits: int = 0
    """Offset of the first byte after the header of the first scan, if that has all colors; else 0."""

    def is_one_whole_scan(self, content: bytes) -> bool:
        """Whether the file has one scan, of all colors, and ends with the marker after it.

        Another marker among its bits may be damage; some decoders do not report it, and fill the rest with gray.
        """
        if not self.bits or not content.endswith(END):
            return False
        bits = np.frombuffer(content, np.uint8)[self.bits :]
        return int(np.count_nonzero(_IS_MARKER[bits[1:][bits[:-1] == 0xFF]])) == 1


def jpeg_header(content: bytes, max_scans: int) -> JpegHeader:
    """Parse the headers of a file, up to one scan more than `max_scans`."""
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
    """Yield each segment of a file; the bits of the scans lie between them, and contain no marker."""
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
