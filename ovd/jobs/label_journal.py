"""What was found in images before a labelling was interrupted: a file that the same command goes on from.

`OUTPUT.partial` has the settings in its first line, and then a line for each image: its name, size in bytes and time of
change, and the boxes. It is removed when the output is written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ovd.structures import Detections

Answer = tuple[Detections, Detections]
"""The boxes of an image at or above the thresholds, and candidates for a review."""


class LabelJournal:
    """A context manager, without whose answers the file is removed again."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """
        Args:
            path: the file.
            settings: JSON-able; all that answers depend on besides the image.

        Raises:
            ValueError: the file is of other settings, or damaged before its last line.
        """
        self.path = path
        self.done: dict[str, Answer] = {}
        """Answers of an interrupted call by the image's name, also of images that have changed since (`is_done`)."""
        self._stats: dict[str, list[int]] = {}
        self._settings = json.loads(json.dumps(settings))
        whole = self._read() if path.exists() else 0
        self._is_empty = not self.done
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole)  # without a line that was cut off
        self._file.seek(whole)
        if not whole:
            self._write(self._settings)

    def _read(self) -> int:
        """Read the lines that are whole; return their length in bytes."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in content[:whole].splitlines()]
            for name, stat, kept, below in lines[1:]:
                self.done[name], self._stats[name] = (_detections(kept), _detections(below)), stat
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); delete it to label all images") from None
        if lines and lines[0] != self._settings:
            raise ValueError(f"{self.path} is of an interrupted call with other settings; repeat these, or delete it")
        return whole

    def is_done(self, name: str, image: Path) -> bool:
        """Whether this very image has an answer."""
        return self._stats.get(name) == _stat(image)

    def add(self, name: str, image: Path, answer: Answer) -> None:
        """Write the answer of an image."""
        self._is_empty = False
        self._write([name, _stat(image), *map(_columns, answer)])

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Remove the file, once all is written elsewhere."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "LabelJournal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._is_empty:
            self.remove()


def _stat(image: Path) -> list[int]:
    found = image.stat()
    return [found.st_size, found.st_mtime_ns]


def _columns(found: Detections) -> dict[str, Any]:
    return {name: getattr(found, name).tolist() for name in ("boxes", "scores", "classes")}


def _detections(columns: dict[str, Any]) -> Detections:
    return Detections(
        torch.tensor(columns["boxes"], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(columns["scores"], dtype=torch.float32),
        torch.tensor(columns["classes"], dtype=torch.int64),
    )
