"""The XML files of a Pascal VOC set, and the image of each of them."""

import os
import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ovd.data.formats.text_files import read_lines
from ovd.data.images.files import READ_SUFFIXES, find_files, find_images, is_image_name
from ovd.data.report import DataError, DataReport


@dataclass(frozen=True)
class XmlFile:
    """An XML file of one image's annotations."""

    path: Path
    name: str
    """Path without suffix, relative to the folder of all XML files, with slashes."""


def xml_files(annotations: Path, report: DataReport) -> list[XmlFile]:
    """Return the XML files in a folder and its subfolders, sorted by path, or those in a text file, in its order.

    A text file has one name per line; the XML files lie in `../../Annotations` (or `annotations`).

    Args:
        report: counts names that are repeated in a list (F2), and used once.

    Raises:
        DataError: F1 there is no XML file, or a name has none.
    """
    if annotations.is_dir():
        paths = [path.relative_to(annotations) for path in sorted(find_files(annotations, _is_annotation))]
        paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
        if not paths:
            raise DataError("F1", f"{annotations}: no .xml file in this folder")
        return [XmlFile(annotations / path, path.with_suffix("").as_posix()) for path in paths]
    folder = _folder_of_list(annotations)
    files: list[XmlFile] = []
    line_of: dict[str, int] = {}
    for number, line in read_lines(annotations):
        name = posixpath.normpath(line if _exists(folder / f"{line}.xml") else line.removesuffix(".xml"))
        if is_image_name(name) and not _exists(folder / f"{name}.xml"):
            name = os.path.splitext(name)[0]
        if (first := line_of.setdefault(name, number)) != number:
            report.count_repaired(
                "F2", f"{annotations}: line {number} repeats {name!r} of line {first}; it is used once"
            )
            continue
        path = folder / f"{name}.xml"
        if not _exists(path):
            if not files and line.startswith(("{", "[")):
                words = "is JSON, not a list of names; for JSON files, use the format coco or lvis"
                raise DataError("F1", f"{annotations} {words}")
            raise DataError(
                "F1",
                f"{annotations}: line {number} is {name[:80]!r}, but {path} does not exist; if this is another list, "
                f"give the folder of the XML files instead",
            )
        files.append(XmlFile(path, name))
    return files


class ImageFolder:
    """The image folder of a set, in which the image of each XML file is found; folders are listed once."""

    def __init__(self, root: Path | None, *, anywhere: bool = False):
        """
        Args:
            root: the folder; if None, an image has the name of its XML file.
            anywhere: whether images are searched for in all subfolders, too (`by_base_name`).
        """
        self._root = root
        self._anywhere = anywhere
        self._listed: dict[str, dict[str, list[str]]] = {}

    def image_of(self, file: XmlFile, file_name: str | None, report: DataReport) -> str:
        """Return the path of an XML file's image, relative to the image folder.

        The image has the XML file's own name, as in VOCdevkit. `<filename>` is used if there is no such image, or if it
        is an existing path with a folder: tools rename files without changing a bare `<filename>`.

        Args:
            file_name: text of `<filename>`.
            report: counts images with another name than `<filename>` (F8).

        Raises:
            DataError: F2 several images have the name, and `<filename>` is none of them.
        """
        stated = (file_name or "").strip()
        folder, _, stem = file.name.rpartition("/")
        if self._root is None:
            return file.name + (_suffix(stated) or READ_SUFFIXES[0])
        if "/" in stated and _exists(self._root / stated):
            return stated
        own = self._named(file.name) or (self._named(stem) if folder else [])
        if own:
            last = [image for image in own if image.rpartition("/")[2].strip() in _lasts(stated)]
            found = _only(last or own, file.path)
            if stated and stem.strip() not in map(_without_suffix, _lasts(stated)):
                where = (
                    f"{file.path}: <filename> is {stated!r}, but {found}, which has the name of the XML file, is used"
                )
                report.count_noticed("F8", where)
            return found
        name = stated or stem
        if is_image_name(name):
            return name
        return _only(self._named(name) or [name + READ_SUFFIXES[0]], file.path)

    def _named(self, name: str) -> list[str]:
        """Return the images with this name, which has no suffix and may include folders."""
        folder, _, stem = name.rpartition("/")
        return self._listing("" if self._anywhere else folder).get(stem, [])

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """Return the images in a folder, or anywhere, by name without suffix; paths are relative to the root."""
        assert self._root is not None
        if folder not in self._listed:
            by_stem: dict[str, list[str]] = defaultdict(list)
            below = find_images(self._root) if self._anywhere else _images_in(self._root / folder)
            for image in below:
                by_stem[image.stem].append(image.relative_to(self._root).as_posix())
            self._listed[folder] = by_stem
        return self._listed[folder]


def _folder_of_list(path: Path) -> Path:
    """Return VOCdevkit's folder `Annotations`, or `annotations`, beside `ImageSets`."""
    devkit = Path(os.path.normpath(path.parent / ".." / ".."))
    folder = devkit / "Annotations"
    spelled_low = devkit / "annotations"
    return spelled_low if not folder.is_dir() and spelled_low.is_dir() else folder


def _is_annotation(name: str) -> bool:
    return name.lower().endswith(".xml")


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a line that is no name: too long, or with a zero byte
        return False


def _images_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder / entry.name for entry in os.scandir(folder) if is_image_name(entry.name))
    except (OSError, ValueError):
        return []


def _only(found: list[str], path: Path) -> str:
    if len(found) > 1:
        raise DataError("F2", f"{path}: the image may be {' or '.join(found)}; add the suffix to <filename>")
    return found[0]


def _lasts(path: str) -> tuple[str, str]:
    """Return the last part of a path of this system, whose names may have backslashes, and of a path of any system."""
    return path.rpartition("/")[2], re.split(r"[/\\]", path)[-1]


def _suffix(path: str) -> str:
    """Return the suffix of an image's path of any system; empty if it is none."""
    return os.path.splitext(path)[1] if is_image_name(_lasts(path)[1]) else ""


def _without_suffix(name: str) -> str:
    return name.removesuffix(_suffix(name))
