"""Paths written on another machine: "/content/set/train/images", "C:\\set\\train\\images", "data/train.txt".

A file that describes a data set often names folders where they were when it was written, or as a program sees them. Of
a path that does not exist, the longest end that does is taken, below the folder of images or the file's own.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ovd.data.report import DataError, DataReport


class MovedPaths:
    """Finds what the paths in a file stand for on this machine; `report` counts those of which an end is taken (F8)."""

    def __init__(self, path: Path, root: Path, report: DataReport):
        """
        Args:
            path: the file.
            root: the folder that its paths start at.
        """
        self.path = path
        self._root = root
        self._bases = (root, path.parent)
        self._report = report
        self._folder_of: dict[tuple[Path, str], Path | None] = {}

    def file(self, written: str, key: str) -> Path:
        """The file that a path names; `key` is what messages call the path.

        Raises:
            DataError: F1 there is none.
        """
        found = self._found(written, os.path.isfile)
        if found is None:
            raise self._missing(written, key, "file")
        return found

    def folder_or_list(self, written: str, key: str, of_others: Mapping[str, str]) -> Path:
        """The folder, or the .txt file, that a path names; a .txt file that is missing is left to its reader.

        Args:
            of_others: paths that must not turn out to be the same place, by key.

        Raises:
            DataError: F1 there is none, or what is found could be another's, too.
        """
        place = self._root / written
        if _is_folder_or_list(place):
            return place
        found = self._found(written, _is_folder_or_list)
        if found is None and place.suffix == ".txt":
            return place
        if found is None:
            raise self._missing(written, key, "folder")
        for other, path in of_others.items():
            if path != written and self._found(path, _is_folder_or_list) == found:
                raise DataError(
                    "F1",
                    f"{self.path}: {key} is {written!r}, which is not there, and {other} is {path!r}; {found} could be "
                    "either: correct the paths",
                )
        # Exports of Roboflow say ../train/images and lie in the folder that has train/images.
        if found != self._root / written.removeprefix("../"):
            self._report.noticed("F8", f"{self.path}: {key} is {written!r}, which is not there; {found} is taken")
        return found

    def image(self, written: str, place: Path) -> Path:
        """The image that a line of the list at `place` names, relative to the list's folder; it may be missing."""
        image = place.parent / written
        if image.parent.is_dir() and "\\" not in written:
            return image
        *folders, name = _parts(written)
        folder = "/".join(folders)
        if (place, folder) not in self._folder_of:
            ends = (base / end for end in (*_ends(folder), "") for base in (place.parent, *self._bases))
            found = next((end for end in ends if (end / name).is_file()), None)
            if found is not None:
                self._report.noticed("F8", f"{place}: images of {folder!r}, which is not there; {found} is taken")
            self._folder_of[place, folder] = found
        found = self._folder_of[place, folder]
        return image if found is None else found / name

    def _found(self, written: str, is_right: Callable[[Path], bool]) -> Path | None:
        candidates = [self._root / written, *(base / end for end in _ends(written) for base in self._bases)]
        return next((path for path in candidates if is_right(path)), None)

    def _missing(self, written: str, key: str, kind: str) -> DataError:
        return DataError(
            "F1",
            f"{self.path}: {key} is {written!r}, but {self._root / written} is no {kind}; paths start at {self._root}: "
            "give the folder of images, if that is another one",
        )


def _is_folder_or_list(path: Path) -> bool:
    return os.path.isdir(path) or (path.suffix == ".txt" and os.path.isfile(path))


def _parts(path: str) -> list[str]:
    """The names in a path of any system, without a drive and without steps up."""
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..") and not part.endswith(":")]


def _ends(path: str) -> Iterator[str]:
    """The path from each of its parts on, the longest first."""
    parts = _parts(path)
    return ("/".join(parts[first:]) for first in range(len(parts)))
