"""Journal of a labeling: a file with the boxes found so far, from which the same command resumes if interrupted.

The first line of `OUTPUT.partial` has the settings. Each further line is either an image (its name, size in bytes,
modification time, and boxes) or a list of repairs that were made to read images. The file is removed when the output is
written.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ovd.config_files import describe_differences
from ovd.fault import Fault
from ovd.files import lock_file, unlock_file
from ovd.structures import Detections

_MARK = "ovd label"


@dataclass(frozen=True)
class SelectedDetections:
    """Boxes found in one image."""

    kept: Detections
    """Boxes at or above the thresholds."""
    below: Detections
    """Boxes below the thresholds that are candidates for review."""

    def to_json(self) -> list[dict[str, Any]]:
        return [{key: value.tolist() for key, value in vars(of).items()} for of in (self.kept, self.below)]

    @classmethod
    def from_json(cls, content: list[dict[str, Any]]) -> "SelectedDetections":
        """Rebuild the boxes from the result of `to_json`.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: `content` is not such a result.
        """
        kept, below = content
        return cls(_detections(kept), _detections(below))


class LabelJournal:
    """Context manager that locks the journal file; on exit, a file without images is removed."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """
        Args:
            path: path of the journal file.
            settings: JSON-serializable settings: all that boxes depend on besides the image.

        Raises:
            ValueError: the file has other settings, is damaged, is not a journal, or is in use.
        """
        self.path = path
        self.repaired: list[Fault] = []
        """Repairs made to read images in the interrupted call."""
        self._settings = json.loads(json.dumps({_MARK: 1, **settings}))
        self._lines: dict[str, bytes] = {}
        """Latest line of each image, by its name."""
        self._file = path.open("a+b")
        try:
            if not lock_file(self._file) or not _is_at(path, self._file):
                raise ValueError(f"{path} is in use by another labeling process; wait until it ends")
            self._file.seek(0)
            whole = self._read()
            self._file.truncate(whole)  # drops a line that was cut off
            self.is_resumed = whole > 0
            """Whether an interrupted call is resumed."""
            if not self.is_resumed:
                self._write(self._settings)
        except ValueError:
            self._file.close()
            raise

    def _read(self) -> int:
        """Read the complete lines; return their total length in bytes."""
        head = json.dumps(self._settings).encode() + b"\n"
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n") and (number > 1 or head.startswith(line)):
                break
            try:
                content = json.loads(line)
                if number == 1:
                    self._check_settings(content)
                elif isinstance(content, dict):
                    self.repaired += map(Fault.read, content["repaired"])
                else:
                    name, _, *boxes = content
                    SelectedDetections.from_json(boxes)
                    self._lines[name] = line
            except _OtherSettingsError:
                raise
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: not written by ovd label ({error}); move the file away"
                ) from None
            whole += len(line)
        return whole

    def _check_settings(self, before: Any) -> None:
        if not isinstance(before, dict) or _MARK not in before:
            raise ValueError("it has no settings")
        if different := describe_differences(before, self._settings):
            raise _OtherSettingsError(
                f"{self.path} is from an interrupted call with other settings ({different}); use these, or delete it"
            )

    def find(self, name: str, stat: Sequence[int]) -> SelectedDetections | None:
        """Return the stored boxes of an image; None if there is none, or the image has changed since.

        Args:
            name: name of the image.
            stat: `stat_of` the image file.
        """
        line = self._lines.get(name)
        if line is None:
            return None
        _, before, *boxes = json.loads(line)
        return SelectedDetections.from_json(boxes) if before == list(stat) else None

    def add(self, name: str, stat: Sequence[int], selected: SelectedDetections) -> None:
        """Write the boxes of an image; arguments as for `find`."""
        self._lines[name] = self._write([name, list(stat), *selected.to_json()])

    def add_repaired(self, faults: Sequence[Fault]) -> None:
        """Write the repairs that were made to read images."""
        if faults:
            self._write({"repaired": [str(fault) for fault in faults]})

    def _write(self, line: Any) -> bytes:
        content = json.dumps(line).encode() + b"\n"
        self._file.write(content)
        self._file.flush()
        return content

    def remove(self) -> None:
        """Remove the file, once the output is written."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "LabelJournal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._lines:
            self.remove()
        unlock_file(self._file)
        self._file.close()


class _OtherSettingsError(ValueError):
    """The journal was written with other settings."""


def _is_at(path: Path, file: BufferedRandom) -> bool:
    """Return whether an open file is still the one at `path`; the process that held it may have removed it."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def stat_of(image: Path) -> list[int]:
    """Return the size of an image file in bytes and its modification time in nanoseconds."""
    found = image.stat()
    return [found.st_size, found.st_mtime_ns]


def _detections(columns: dict[str, Any]) -> Detections:
    """Rebuild the detections of a journal line.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: `columns` does not hold detections.
    """
    scores = torch.tensor(columns["scores"], dtype=torch.float32)
    classes = torch.tensor(columns["classes"], dtype=torch.int64)
    boxes = torch.tensor(columns["boxes"], dtype=torch.float32).reshape(len(scores), 4)
    if len(classes) != len(scores):
        raise ValueError("scores and classes differ in number")
    return Detections(boxes, scores, classes)
