"""Paths written on another machine: "/content/set/train/images", "C:\\set\\train\\images", "data/train.txt".

A file that describes a data set often names folders where they were when it was written, or as a program sees them. Of
a path that does not exist, the longest end that does is taken, below the folder of images or the file's own.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ovd.data.report import DataError, DataReport
from ovd.data.text_files import read_lines


class MovedPaths:
    """Finds what the paths in a file stand for on this machine; `report` counts those of which an end is taken (F8)."""

    def __init__(self, path: Path, root: Path, report: DataReport, *, start: str = ""):
        """
        Args:
            path: the file.
            root: the folder that its paths start at.
            start: how the file itself writes that folder, which may be of another machine, too.
        """
        self._start = start
        self.path = path
        self._root = root
        self._bases = (root, path.parent)
        self._report = report

    def file(self, written: str, key: str) -> Path:
        """The file that a path names; `key` is what messages call the path.

        Raises:
            DataError: F1 there is none.
        """
        found = self._found(written, os.path.isfile)
        if found is None:
            raise self._missing(written, key, "file")
        return found

    def folder_or_list(self, written: str, key: str, others: Sequence[tuple[str, str]]) -> Path:
        """The folder, or the .txt file, that a path names.

        Args:
            others: key and path of what must be other images.

        Raises:
            DataError: F1 there is none, or an end was found that is another's, too, or has the other in it.
        """
        place = self._root / written
        if _is_folder_or_list(place) and written.strip():
            return place
        found = self._found(written, _is_folder_or_list)
        if found is None:
            raise self._missing(written, key, "list of images" if place.suffix == ".txt" else "folder")
        for other, path in others:
            of_other = self._found(path, _is_folder_or_list)
            if path != written and of_other is not None and _overlap(found, of_other):
                raise DataError(
                    "F1",
                    f"{self.path}: {key} is {written!r}, which is not there, and {found}, the end of it that is, has "
                    f"images of {other}, {path!r}: correct the paths",
                )
        # Exports of Roboflow say ../train/images and lie in the folder that has train/images.
        if found != self._root / written.removeprefix("../"):
            self._report.noticed("F8", f"{self.path}: {key} is {written!r}, which is not there; {found} is taken")
        return found

    def images(self, place: Path, other_lists: Sequence[Path]) -> list[Path]:
        """The images that a list names, relative to its own folder; they may be missing.

        Raises:
            DataError: F1 a line that names no file, or a folder of which an end was found that another list has under
                another name.
        """
        folders = self._folders(place)
        for other in other_lists:
            for folder, found in self._folders(other).items():
                for written, end in folders.items():
                    is_moved = end != place.parent / written
                    if folder != written and is_moved and os.path.realpath(end) == os.path.realpath(found):
                        raise DataError(
                            "F1",
                            f"{place}: has images of {written!r}, which is not there, and {other} of {folder!r}; {end} "
                            "could be either: correct the paths",
                        )
        for written, end in folders.items():
            if end != place.parent / written:
                self._report.noticed("F8", f"{place}: images of {written!r}, which is not there; {end} is taken")
        return [folders[folder] / name for folder, name in _folders_and_names(place)]

    def _folders(self, place: Path) -> dict[str, Path]:
        """Where the folders that a list names are: the end that has most of their images, if they do not exist."""
        names: dict[str, list[str]] = defaultdict(list)
        for folder, name in _folders_and_names(place):
            names[folder].append(name)
        found = {folder: place.parent / folder for folder in names}
        for folder, direct in found.items():
            if not os.path.isdir(direct):
                bases = (place.parent, *self._bases)
                ends = list(dict.fromkeys(base / end for end in (*_ends(folder), "") for base in bases))
                counts = [_num_files(end, names[folder]) for end in ends]
                if max(counts):
                    found[folder] = ends[counts.index(max(counts))]
        return found

    def _found(self, written: str, is_right: Callable[[Path], bool]) -> Path | None:
        if not written.strip():
            return None
        ends = _ends(os.path.join(self._start, written))
        candidates = [self._root / written, *(base / end for end in ends for base in self._bases)]
        return next((path for path in candidates if is_right(path)), None)

    def _missing(self, written: str, key: str, kind: str) -> DataError:
        return DataError(
            "F1",
            f"{self.path}: {key} is {written!r}, but {self._root / written} is no {kind}; paths start at {self._root}: "
            "give the folder of images, if that is another one (--images, data.source.train_images)",
        )


def _folders_and_names(place: Path) -> Iterator[tuple[str, str]]:
    """The folder and the name in each line of a list; separators are those of any system."""
    for number, line in read_lines(place):
        if os.path.isfile(place.parent / line):  # a name may have a backslash
            folder, _, name = line.rpartition("/")
        else:
            folder, _, name = line.replace("\\", "/").rpartition("/")
        if not name or name.endswith(":"):
            raise DataError("F1", f"{place}: line {number} is {line!r}, which names no image")
        yield (folder or "/" if line.startswith("/") else folder), name


def _num_files(folder: Path, names: Sequence[str]) -> int:
    try:
        there = {entry.name for entry in os.scandir(folder)}
    except (OSError, ValueError):
        return 0
    return sum(name in there for name in names)


def _is_folder_or_list(path: Path) -> bool:
    return os.path.isdir(path) or (path.suffix == ".txt" and os.path.isfile(path))


def _overlap(first: Path, second: Path) -> bool:
    """Whether two places are the same, or one is a folder that the other is in."""
    one, other = Path(os.path.realpath(first)), Path(os.path.realpath(second))
    return one == other or (one.is_dir() and one in other.parents) or (other.is_dir() and other in one.parents)


def _parts(path: str) -> list[str]:
    """The names in a path of any system, without a drive and without steps up."""
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..") and not part.endswith(":")]


def _ends(path: str) -> Iterator[str]:
    """The path from each of its parts on, the longest first."""
    parts = _parts(path)
    return ("/".join(parts[first:]) for first in range(len(parts)))
