"""Limits on the cost of a request, and the refusal of a request that exceeds them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds of a server, so that no request takes more memory or time than its owner allows."""

    megabytes: float = 20.0
    """Size of a picture file, and of all files of a request, in millions of bytes."""
    megapixels: float = 64.0
    """Size of a picture in millions of pixels, read from its header before anything is decoded."""
    names: int = 500
    """Number of names in a request."""
    name_length: int = 100
    """Number of characters in a name."""
    examples: int = 20
    """Number of example pictures in a request."""
    boxes: int = 1000
    """Number of boxes in an answer."""
    waiting: int = 64
    """Number of detection requests that wait or are answered at once; twice as many may have their bodies read."""
    connections: int = 256
    """Number of open connections."""
    head_bytes: int = 16 * 1024
    """Size in bytes of a request's first line and headers."""
    head_seconds: float = 10.0
    """Seconds from the opening of a connection, or the end of its last answer, to the end of a request's headers."""
    body_seconds: float = 30.0
    """Seconds from the end of the headers to the end of the body."""
    answer_seconds: float = 60.0
    """Seconds from the end of the body to the answer."""

    @property
    def max_bytes(self) -> int:
        """Size of a picture file in bytes."""
        return int(self.megabytes * 1e6)

    @property
    def max_pixels(self) -> int:
        """Number of pixels in a picture."""
        return int(self.megapixels * 1e6)

    @property
    def max_text_bytes(self) -> int:
        """Size in bytes of all text fields: names and names of examples, each character in up to four bytes."""
        return 4 * (self.names + self.examples) * (self.name_length + 2)

    @property
    def bodies(self) -> int:
        """Number of detection requests whose bodies are read at once."""
        return 2 * self.waiting

    @property
    def max_body_bytes(self) -> int:
        """Size in bytes of a request's whole body."""
        return self.max_bytes + self.max_text_bytes + 64 * 1024


class Refusal(Exception):
    """Refusal of a request, with the HTTP status and one plain sentence that says why."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
