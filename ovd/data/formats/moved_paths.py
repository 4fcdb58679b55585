"""Paths written on another machine: "/content/set/train/images", "C:\\set\\train\\images", "data/train.txt".

A file that describes a data set often has paths of the machine that wrote it, or relative to a program's working
directory. If a path does not exist, the longest trailing part of it that exists is used, below the image folder or the
file's own folder.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd.data.formats.image_names import with_slashes
from ovd.data.formats.text_files import read_lines
from ovd.data.report import DataError, DataReport


@dataclass(frozen=True)
class _Place:
    """The location of a written path on this machine."""

    path: Path
    cut: str
    """Leading part of the written path that was removed; empty if the path exists as written."""


class MovedPaths:
    """A resolver of the paths in a file; `report` counts paths of which only a trailing part is used (F8)."""

    def __init__(self, path: Path, root: Path, report: DataReport, *, start: str = ""):
        """
        Args:
            path: the file.
            root: the folder that its paths are relative to.
            start: that folder as written in the file, possibly a path of another machine, too.
        """
        self.path = path
        self._root = root
        self._start = start
        self._bases = tuple(dict.fromkeys((root, path.parent)))
        self._report = report
        self._names_in: dict[Path, frozenset[str]] = {}

    def file(self, written: str, key: str) -> Path:
        """Return the file of a written path; `key` is the name of the path in messages.

        Raises:
            DataError: F1 there is no such file.
        """
        found = self._found(written, os.path.isfile)
        if found is None:
            raise self._missing(written, key, "file")
        return found.path

    def folder_or_list(self, written: str, key: str, others: Sequence[tuple[str, str]]) -> Path:
        """Return the folder or the .txt file of a written path.

        Args:
            others: keys and written paths of sources that must have other images.

        Raises:
            DataError: F1 there is no such folder or file, or only a trailing part of the path exists, and it overlaps
                with that of another source, whose path was shortened differently.
        """
        found = self._found(written, _is_folder_or_list)
        if found is None:
            is_list = (self._root / written).suffix == ".txt"
            raise self._missing(written, key, "list of images" if is_list else "folder")
        place = self._root / written
        if found.path == place:
            return place
        for other, path in others:
            other_found = self._found(path, _is_folder_or_list)
            if other_found is not None and other_found.cut != found.cut and _overlap(found.path, other_found.path):
                raise DataError(
                    "F1",
                    f"{self.path}: {key} is {written!r}, which does not exist; its end, {found.path}, exists, but "
                    f"has the images of {other}, {path!r}; correct the paths",
                )
        # Exports of Roboflow say ../train/images and lie in the folder that has train/images.
        if found.path != self._root / written.removeprefix("../"):
            self._report.count_noticed(
                "F8", f"{self.path}: {key} is {place}, which does not exist; {found.path} is used"
            )
        return found.path

    def lists(self, sources: Sequence[tuple[str, str]]) -> list[Path]:
        """Return the .txt files among sources, which are pairs of a key and a written path."""
        found = (self._found(written, _is_folder_or_list) for _, written in sources)
        return [place.path for place in found if place is not None and not place.path.is_dir()]

    def images(self, place: Path, others: Sequence[Path]) -> list[Path]:
        """Return the images in a list, whose lines are relative to its own folder; images may be missing.

        Args:
            others: lists that must have other images.

        Raises:
            DataError: F1 a line names no file, or only a trailing part of a folder's path exists, and an image there is
                also in another list, whose folder was shortened differently.
        """
        lines = list(_folders_and_names(place))
        folders = self._folders(place, lines)
        moved = {os.path.realpath(end.path): (folder, end) for folder, end in folders.items() if end.cut}
        for other in others if moved else ():
            self._check_other_images(place, lines, folders, other)
        for folder, end in moved.values():
            self._report.count_noticed("F8", f"{place}: the image folder {folder!r} does not exist; {end.path} is used")
        return [folders[folder].path / name for folder, name in lines]

    def _check_other_images(
        self, place: Path, lines: Sequence[tuple[str, str]], folders: dict[str, _Place], other: Path
    ) -> None:
        if other == place:
            return
        try:
            others = list(_folders_and_names(other))
        except DataError:
            return  # the faulty list of another split is not an error here
        other_folders = self._folders(other, others)
        real = {folder: os.path.realpath(end.path) for each in (folders, other_folders) for folder, end in each.items()}
        cuts = {(real[folder], name): folders[folder].cut for folder, name in lines}
        for folder, name in others:
            cut = cuts.get((real[folder], name))
            if cut is not None and cut != other_folders[folder].cut:
                raise DataError(
                    "F1",
                    f"{place} and {other}: {other_folders[folder].path / name} could be an image of either, by the "
                    "ends of their paths; correct the paths",
                )

    def _folders(self, place: Path, lines: Sequence[tuple[str, str]]) -> dict[str, _Place]:
        """Locate the folders in a list; for one that does not exist, the trailing part with most of its images."""
        names: dict[str, list[str]] = defaultdict(list)
        for folder, name in lines:
            names[folder].append(name)
        return {folder: self._folder(place.parent, folder, of_folder) for folder, of_folder in names.items()}

    def _folder(self, start: Path, written: str, names: Sequence[str]) -> _Place:
        if os.path.isdir(start / written):
            return _Place(start / written, "")
        parts = _parts(written)
        ends = [
            _Place(base.joinpath(*parts[first:]), "/".join(parts[:first]))
            for first in range(len(parts) + 1)
            for base in dict.fromkeys((start, *self._bases))
        ]
        counts = [sum(name in self._files(end.path) for name in names) for end in ends]
        return ends[counts.index(max(counts))] if max(counts) else _Place(start / written, "")

    def _files(self, folder: Path) -> frozenset[str]:
        """Return the names in a folder; empty if it cannot be read."""
        if folder not in self._names_in:
            try:
                self._names_in[folder] = frozenset(entry.name for entry in os.scandir(folder))
            except (OSError, ValueError):
                self._names_in[folder] = frozenset()
        return self._names_in[folder]

    def _found(self, written: str, is_right: Callable[[Path], bool]) -> _Place | None:
        if not written.strip():
            return None
        if is_right(self._root / written):
            return _Place(self._root / written, "")
        parts = _parts(os.path.join(self._start, written))
        ends = (
            _Place(base.joinpath(*parts[first:]), "/".join(parts[:first]))
            for first in range(len(parts))
            for base in self._bases
        )
        return next((end for end in ends if is_right(end.path)), None)

    def _missing(self, written: str, key: str, kind: str) -> DataError:
        return DataError(
            "F1",
            f"{self.path}: {key} is {written!r}, but {self._root / written} is not a {kind}; paths are relative to "
            f"{self._root}; if the images are elsewhere, give their folder (--images, data.source.train_images)",
        )


def _folders_and_names(place: Path) -> Iterator[tuple[str, str]]:
    """Yield the folder and the name in each line of a list, with path separators of any system."""
    for number, line in read_lines(place):
        folder, _, name = with_slashes(line, place.parent).rpartition("/")
        if not name or name.endswith(":"):
            raise DataError("F1", f"{place}: line {number} is {line!r}, which is not an image name")
        yield (folder or "/" if line.startswith("/") else folder), name


def _is_folder_or_list(path: Path) -> bool:
    return os.path.isdir(path) or (path.suffix == ".txt" and os.path.isfile(path))


def _overlap(first: Path, second: Path) -> bool:
    """Whether two paths are the same, or one is a folder that contains the other."""
    one, other = Path(os.path.realpath(first)), Path(os.path.realpath(second))
    return one == other or (one.is_dir() and one in other.parents) or (other.is_dir() and other in one.parents)


def _parts(path: str) -> list[str]:
    """Split a path of any system into names, without drive, `.` and `..`."""
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..") and not part.endswith(":")]
