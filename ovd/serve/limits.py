"""What one request may cost, and how a request beyond it is refused."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server, so that no request takes more memory or time than its owner allows."""

    megabytes: float = 20.0
    """Size of a picture file, and of all files of a request, in millions of bytes."""
    megapixels: float = 64.0
    """Size of a picture in millions of pixels, read from its header before anything is decoded."""
    names: int = 500
    """Number of names in a request."""
    name_length: int = 100
    """Characters in a name."""
    examples: int = 20
    """Number of example pictures in a request."""
    boxes: int = 1000
    """Number of boxes in an answer."""
    waiting: int = 64
    """Requests for detection that wait or are answered at once, and twice as many whose bodies are read."""
    connections: int = 256
    """Open connections."""
    head_bytes: int = 16 * 1024
    """Of the first line and all headers of a request."""
    head_seconds: float = 10.0
    """From the opening of a connection, or the end of its last answer, to the end of a request's headers."""
    body_seconds: float = 30.0
    """From the end of the headers to the end of the body."""
    answer_seconds: float = 60.0
    """From the end of the body to the answer."""

    @property
    def max_bytes(self) -> int:
        """Bytes of a picture file."""
        return int(self.megabytes * 1e6)

    @property
    def max_pixels(self) -> int:
        """Pixels of a picture."""
        return int(self.megapixels * 1e6)

    @property
    def max_text_bytes(self) -> int:
        """Bytes of all text fields: names and what examples are called, each character in up to four bytes."""
        return 4 * (self.names + self.examples) * (self.name_length + 2)

    @property
    def bodies(self) -> int:
        """Requests for detection whose bodies are read at once."""
        return 2 * self.waiting

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a whole request."""
        return self.max_bytes + self.max_text_bytes + 64 * 1024


class Refusal(Exception):
    """A request that is not answered: the HTTP status, and one plain sentence that says why."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
