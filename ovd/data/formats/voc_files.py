"""Which XML files a set of Pascal VOC has, and which image each of them is of."""

import os
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ovd.data.formats.text_files import read_lines
from ovd.data.images.files import READ_SUFFIXES, files_below, images_below, is_image_name
from ovd.data.report import DataError, DataReport


@dataclass(frozen=True)
class XmlFile:
    """One XML file."""

    path: Path
    name: str
    """Its path without suffix, from the folder of all XML files, with slashes."""


def xml_files(annotations: Path, report: DataReport) -> list[XmlFile]:
    """The XML files in a folder and those below it, by path, or those that a text file lists, in its order.

    A list has one name per line, whose XML files lie in `../../Annotations` (or `annotations`).

    Args:
        report: counts names that a list has again (F2), which are taken once.

    Raises:
        DataError: F1 no XML file, or a name without one.
    """
    if annotations.is_dir():
        paths = [path.relative_to(annotations) for path in sorted(files_below(annotations, _is_annotation))]
        paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
        if not paths:
            raise DataError("F1", f"{annotations}: no .xml file in this folder")
        return [XmlFile(annotations / path, path.with_suffix("").as_posix()) for path in paths]
    folder = _folder_of_list(annotations)
    files: list[XmlFile] = []
    line_of: dict[str, int] = {}
    lines = read_lines(annotations)
    if lines and lines[0][1].startswith(("{", "[")):
        raise DataError("F1", f"{annotations} is JSON, not a list of names: formats of JSON files are coco and lvis")
    for number, line in lines:
        name = posixpath.normpath(line if _exists(folder / f"{line}.xml") else line.removesuffix(".xml"))
        if is_image_name(name) and not _exists(folder / f"{name}.xml"):
            name = os.path.splitext(name)[0]
        if (first := line_of.setdefault(name, number)) != number:
            report.repaired("F2", f"{annotations}: line {number} is {name!r}, as line {first}; it is taken once")
            continue
        path = folder / f"{name}.xml"
        if not _exists(path):
            raise DataError(
                "F1",
                f"{annotations}: line {number} is {name[:80]!r}, but {path} does not exist; if the list is of other "
                f"files, give the folder of the XML files itself",
            )
        files.append(XmlFile(path, name))
    return files


class ImageFolder:
    """The folder of a set's images, in which each XML file finds its own; folders are listed once."""

    def __init__(self, root: Path | None, *, anywhere: bool = False):
        """
        Args:
            root: the folder; without one, an image has the name of its XML file.
            anywhere: whether images are looked for in all folders below, too (`by_base_name`).
        """
        self._root = root
        self._anywhere = anywhere
        self._listed: dict[str, dict[str, list[str]]] = {}

    def image_of(self, file: XmlFile, file_name: str | None, report: DataReport) -> str:
        """The path of an XML file's image under the folder.

        It is the image of the XML file's own name, as in VOCdevkit, and the one that `<filename>` says where there is
        none or where `<filename>` leads into a folder: tools rename files and leave a bare `<filename>` as it was.

        Args:
            file_name: what `<filename>` says.
            report: counts images whose `<filename>` is of another name (F8).

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
            last = [image for image in own if image.rpartition("/")[2] == _last(stated)]
            found = _only(last or own, file.path)
            if stated and _stem(stated) != stem:
                where = f"{file.path}: <filename> is {stated!r}; the image of the XML file's name is taken, {found}"
                report.noticed("F8", where)
            return found
        name = stated or stem
        if is_image_name(name):
            return name
        return _only(self._named(name) or [name + READ_SUFFIXES[0]], file.path)

    def _named(self, name: str) -> list[str]:
        """The images of a name without suffix, which may have folders."""
        folder, _, stem = name.rpartition("/")
        return self._listing("" if self._anywhere else folder).get(stem, [])

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """The images in a folder, or anywhere, by their names without suffix; paths from the root."""
        assert self._root is not None
        if folder not in self._listed:
            by_stem: dict[str, list[str]] = defaultdict(list)
            below = images_below(self._root) if self._anywhere else _images_in(self._root / folder)
            for image in below:
                by_stem[image.stem].append(image.relative_to(self._root).as_posix())
            self._listed[folder] = by_stem
        return self._listed[folder]


def _folder_of_list(path: Path) -> Path:
    """VOCdevkit's Annotations beside ImageSets; also where it is spelled without the capital."""
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
        raise DataError("F2", f"{path}: the image may be {' or '.join(found)}; give its <filename> a suffix")
    return found[0]


def _last(name: str) -> str:
    """The last part of a path of any system."""
    return name.replace("\\", "/").rpartition("/")[2]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1] if is_image_name(_last(name)) else ""


def _stem(name: str) -> str:
    """The last part of a path of any system, without the suffix of an image."""
    return _last(name).removesuffix(_suffix(name))
