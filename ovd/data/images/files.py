"""Image files as readers of annotations find them: which files of a folder are images, and their sizes."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd.data.images.image_file import ImageError
from ovd.data.images.size_cache import sizes_of
from ovd.data.index import ImageRecord, Labels
from ovd.data.report import DataReport
from ovd.number_of import number_of
from ovd.shapes import Int64
from ovd.warn import warn

READ_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
"""Usual suffixes of the formats that are read."""

# Files with these suffixes are images too: listed with the others, so that one that is unreadable is counted (F9).
_OTHER_SUFFIXES = (".heic", ".dng", ".jfif", ".jpe", ".j2k", ".mpo", ".pfm", ".ppm")


_OF_SYSTEMS = frozenset({"@eaDir", "__MACOSX"})

LOOKED_AT = 10_000
"""Files below a folder, and folders there, that are looked at to say which are left out."""

DRAWN = ".detections"
"""End of the names, before the suffix, of the files that `ovd detect` writes beside what it is given."""


def is_image_name(name: str) -> bool:
    """Whether a file's name has the suffix of an image; hidden files count as none."""
    return not name.startswith(".") and name.lower().endswith(READ_SUFFIXES + _OTHER_SUFFIXES)


def without_drawn(files: Iterable[Path]) -> list[Path]:
    """The files of a folder or a pattern without those that `ovd detect` has written there, which are counted."""
    found = list(files)
    drawn = list(filter(is_drawn, found))
    if drawn:
        are = "is" if len(drawn) == 1 else "are"
        warn(f"{number_of(len(drawn), 'file')} with detections {are} left out; the first: {drawn[0]}")
    return [file for file in found if not is_drawn(file)]


def named(paths: Iterable[Path], is_wanted: Callable[[str], bool]) -> list[Path]:
    """The files of wanted names, by path, `without_drawn`."""
    # A link that leads nowhere stays: reading it says what is wrong with it.
    return without_drawn(sorted(path for path in paths if is_wanted(path.name) and not path.is_dir()))


def is_drawn(file: Path) -> bool:
    """Whether a file has the name of a picture that `ovd detect` draws, or of the JSON beside it."""
    return file.stem.endswith(DRAWN)


def images_below(folder: Path) -> list[Path]:
    """All images in a folder and the folders below it, by path, `without_drawn`; see `files_below`."""
    return without_drawn(sorted(files_below(folder, is_image_name)))


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """The files of wanted names in a folder and the folders below it, in any order; symbolic links are followed.

    Hidden folders, and those in which systems keep thumbnails and the like, are not looked into. Links to a folder that
    contains them are not followed, since they would give the same files without end; a warning counts them.
    """
    loops = list[str]()
    files = [Path(parent, name) for parent, names in _walk(folder, loops) for name in names if is_wanted(name)]
    if loops:
        warn(f"{len(loops)} links to folders that they lie in are not followed; the first: {min(loops)}")
    return files


def _walk(folder: Path, loops: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it that are looked into, each with the names of its files.

    Args:
        loops: gets the links to folders that they lie in.
    """
    parents = Path(os.path.realpath(folder)).parents
    above = {str(folder): frozenset(map(_identity, parents))}
    for parent, folders, names in os.walk(folder, followlinks=True):
        identity, above_here = _identity(parent), above.pop(parent)
        if identity is not None and identity in above_here:
            loops.append(parent)
            folders.clear()
            continue
        yield parent, names
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _OF_SYSTEMS]
        above |= dict.fromkeys((os.path.join(parent, name) for name in folders), above_here | {identity})


def _identity(folder: str | Path) -> tuple[int, int] | None:
    """What is the same for all paths of a folder; None for one that cannot be looked at."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def name_below(root: Path, path: Path) -> str:
    """A file's path from a folder, with slashes, as it is written into annotation files."""
    return Path(os.path.relpath(path, root)).as_posix()


def images_at(sources: Sequence[str], *, recursive: bool) -> tuple[Path, list[Path]]:
    """The images of folders, files and patterns such as `photos/*.jpg`, each once, and the folder that all lie in.

    Args:
        sources: a file is taken whatever its name; of a folder or a pattern, what is named as an image,
            `without_drawn`.
        recursive: whether folders below a folder are looked into; else a warning says how many images lie there, at
            least: no more than `LOOKED_AT` files are looked at for that.

    Raises:
        ValueError: a source has no image.
    """
    folders, found = list[str](), list[str]()
    for source in sources:
        if os.path.isdir(source):
            here = images_below(Path(source)) if recursive else named(Path(source).iterdir(), is_image_name)
            if not here:
                hint = "" if recursive else "; --recursive looks into the folders below it, too"
                raise ValueError(f"{source}: no images ({', '.join(READ_SUFFIXES)}) in this folder{hint}")
            if not recursive:
                _warn_of_images_below(Path(source))
            folders.append(os.path.abspath(source))
        else:
            here = [Path(source)] if os.path.isfile(source) else []
            here = here or named(map(Path, glob.glob(source, recursive=True)), is_image_name)
            if not here:
                raise ValueError(f"{source}: no such folder, no such file, and as a pattern it matches no image")
            folders += [os.path.dirname(os.path.abspath(path)) for path in here]
        found += [os.path.abspath(path) for path in here]
    return Path(os.path.commonpath(folders)), [Path(path) for path in dict.fromkeys(found)]


def _warn_of_images_below(folder: Path) -> None:
    num_seen, left_out, below = 0, list[Path](), _walk(folder, [])
    next(below, None)  # the folder itself
    for parent, names in below:
        left_out += [Path(parent, name) for name in names if is_image_name(name) and not is_drawn(Path(name))]
        num_seen += 1 + len(names)
        if num_seen >= LOOKED_AT:
            break
    is_cut = num_seen >= LOOKED_AT
    if left_out:
        least, are = "at least " if is_cut else "", "is" if len(left_out) == 1 else "are"
        warn(
            f"{folder}: {least}{number_of(len(left_out), 'image')} in folders below it {are} left out; the first: "
            f"{min(left_out)} (--recursive takes them, too)"
        )
    elif is_cut:
        warn(
            f"{folder}: folders below it are left out; there is no image among the first {num_seen:,} files and "
            "folders there (--recursive looks at all)"
        )


@dataclass(frozen=True)
class ImageFiles:
    """Images of which nothing but their size is known: an `ImageSource` of the loader; ids are positions."""

    paths: tuple[Path, ...]
    sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels."""

    @property
    def image_ids(self) -> Int64[np.ndarray, " N"]:
        return np.arange(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def record(self, image: int) -> ImageRecord:
        """The image at a position, without labels."""
        height, width = self.sizes[image].tolist()
        return ImageRecord(image, self.paths[image], height, width, Labels.empty())

    def encoded(self, image: int) -> Path:
        """The image's file."""
        return self.paths[image]


def readable_sizes(
    paths: Sequence[Path], report: DataReport, *, stops: bool, num_images: int | None = None
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, "K 2"]]:
    """Positions of the images whose header can be read, and their heights and widths as the loader will see them.

    Args:
        report: counts the images that are left out.
        stops: whether an unreadable image is an error instead.
        num_images: how many images the set has, of which too many may be left out (None: these).

    Raises:
        ImageError: F8, F9, F10 as `decode_image`, if `stops`.
        DataError: too many images were left out.
    """
    positions, sizes = [], []
    for position, size in enumerate(sizes_of(paths)):
        if not isinstance(size, ImageError):
            report.looked_at()
            positions.append(position)
            sizes.append(size)
        elif stops:
            raise size
        else:
            report.skipped(size.code, str(size))
    report.raise_if_too_many(len(paths) if num_images is None else num_images)
    return np.array(positions, dtype=np.int64), np.array(sizes, dtype=np.int64).reshape(-1, 2)
