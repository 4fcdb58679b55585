"""Faults of data samples: a code of data/README.md and a description."""

from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """A fault of one image, pair or object; as text, in files and messages, it is "CODE message"."""

    code: str
    """Code of the fault, such as "F9"."""
    message: str
    """Description: where the fault is, and what is wrong or was repaired."""

    def __str__(self) -> str:
        return f"{self.code} {self.message}"

    def at(self, where: str | Path) -> "Fault":
        """Return the fault with the location of the sample in front of its message."""
        return Fault(self.code, f"{where}: {self.message}")

    @classmethod
    def read(cls, text: str) -> "Fault":
        """Parse a fault from its text.

        Raises:
            ValueError: the text has no code or no message.
        """
        code, space, message = text.partition(" ")
        if not (code and space):
            raise ValueError(f"{text!r} is not the code of a fault and words")
        return cls(code, message)
