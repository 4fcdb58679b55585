"""What is wrong with a sample of data: the code of data/README.md, and words."""

from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """A fault of one image, pair or object; as text, which files hold and people read, "CODE words"."""

    code: str
    """Such as "F9"."""
    words: str
    """Where, and what is wrong or was repaired."""

    def __str__(self) -> str:
        return f"{self.code} {self.words}"

    def at(self, where: str | Path) -> "Fault":
        """The fault with the place of the sample before its words."""
        return Fault(self.code, f"{where}: {self.words}")

    @classmethod
    def read(cls, text: str) -> "Fault":
        """The fault that was written as this text.

        Raises:
            ValueError: it has no code and words.
        """
        code, space, words = text.partition(" ")
        if not (code and space):
            raise ValueError(f"{text!r} is not the code of a fault and words")
        return cls(code, words)
