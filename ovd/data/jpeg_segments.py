"""The segments of JPEG files, and what their headers say before anything is decoded."""

from collections.abc import Iterator

START = b"\xff\xd8"
SCAN = 0xDA
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


def is_lossless(content: bytes) -> bool:
    """Whether a file is a lossless JPEG, which holds differences of pixels in place of frequencies.

    Decoders cannot reduce such an image: libjpeg-turbo 3.1.4 crashes when it is asked to.
    """
    if not content.startswith(START):
        return False
    for marker, _ in segments(content):
        if marker in _LOSSLESS_FRAMES:
            return True
        if marker == SCAN:
            break
    return False


def segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment; between them lie the bits of the scans, in which no marker occurs."""
    place = content.find(b"\xff", len(START))
    while 0 <= place < len(content) - 4:
        marker = content[place + 1]
        if marker in (0x00, 0xFF) or marker in _WITHOUT_LENGTH:
            place = content.find(b"\xff", place + (1 if marker == 0xFF else 2))
            continue
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        yield marker, content[place + 4 : place + 2 + length]
        place = content.find(b"\xff", place + 2 + length)
