"""Search for image files in folders and patterns, and their sizes."""

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
from ovd.format_count import format_count
from ovd.shapes import Int64
from ovd.warn import warn

READ_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
"""Usual suffixes of the formats that are read."""

# Files with these suffixes are listed as images, too, so that an unreadable one is counted (F9).
_OTHER_SUFFIXES = (".heic", ".dng", ".jfif", ".jpe", ".j2k", ".mpo", ".pfm", ".ppm")


_OF_SYSTEMS = frozenset({"@eaDir", "__MACOSX"})

MAX_ENTRIES_SEEN = 10_000
"""Maximum number of files and folders below a folder that are searched for images to warn about."""

DRAWN = ".detections"
"""Ending, before the suffix, of the names of files that `ovd detect` writes beside its inputs."""


def is_image_name(name: str) -> bool:
    """Whether a file's name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(READ_SUFFIXES + _OTHER_SUFFIXES)


def exclude_drawn(files: Iterable[Path]) -> list[Path]:
    """Return the files without those that `ovd detect` wrote; a warning counts these."""
    found = list(files)
    drawn = list(filter(is_drawn, found))
    if drawn:
        are = "is" if len(drawn) == 1 else "are"
        warn(f"{format_count(len(drawn), 'file')} with detections {are} left out; the first: {drawn[0]}")
    return [file for file in found if not is_drawn(file)]


def filter_by_name(paths: Iterable[Path], is_wanted: Callable[[str], bool]) -> list[Path]:
    """Return the files whose names are wanted, sorted by path and filtered by `exclude_drawn`."""
    # A broken link is kept, so that reading it reports what is wrong with it.
    return exclude_drawn(sorted(path for path in paths if is_wanted(path.name) and not path.is_dir()))


def is_drawn(file: Path) -> bool:
    """Whether a file has the name of a picture that `ovd detect` draws, or of the JSON beside it."""
    return file.stem.endswith(DRAWN)


def find_images(folder: Path) -> list[Path]:
    """Return all images that `find_files` finds in a folder, sorted by path and filtered by `exclude_drawn`."""
    return exclude_drawn(sorted(find_files(folder, is_image_name)))


def find_files(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """Return the files in a folder and its subfolders whose names are wanted, in any order, following symbolic links.

    Hidden folders, and those in which systems keep thumbnails and the like, are skipped. Links to a folder that
    contains them are not followed, since they would give the same files without end; a warning counts them. Another
    counts the folders that cannot be read.
    """
    loops, unread = list[str](), list[OSError]()
    files = [Path(parent, name) for parent, names in _walk(folder, loops, unread) for name in names if is_wanted(name)]
    if loops:
        warn(f"{format_count(len(loops), 'link')} to a folder around the link not followed; the first: {min(loops)}")
    if unread:
        first = min(unread, key=lambda error: str(error.filename))
        count = format_count(len(unread), "folder")
        warn(f"the files of {count} are left out; the first: {first.filename} cannot be read ({first.strerror})")
    return files


def _walk(folder: Path, loops: list[str], unread: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and its subfolders that are not skipped, each with the names of its files.

    Args:
        loops: list to which links to a folder that contains them are appended.
        unread: list to which the errors of folders that exist but cannot be read are appended.
    """

    def keep(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            unread.append(error)

    parents = Path(os.path.realpath(folder)).parents
    above = {str(folder): frozenset(map(_identity, parents))}
    for parent, folders, names in os.walk(folder, onerror=keep, followlinks=True):
        identity, above_here = _identity(parent), above.pop(parent)
        if identity is not None and identity in above_here:
            loops.append(parent)
            folders.clear()
            continue
        yield parent, names
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _OF_SYSTEMS]
        above |= dict.fromkeys((os.path.join(parent, name) for name in folders), above_here | {identity})


def _identity(folder: str | Path) -> tuple[int, int] | None:
    """Return an identity that all paths of a folder share; None if its status cannot be read."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def name_below(root: Path, path: Path) -> str:
    """Return a file's path relative to a folder, with slashes, as it is written into annotation files."""
    return Path(os.path.relpath(path, root)).as_posix()


def collect_images(sources: Sequence[str], *, recursive: bool) -> tuple[Path, list[Path]]:
    """Return the common folder of all images in folders, files and patterns such as `photos/*.jpg`, and the images.

    Args:
        sources: files with any name; folders and patterns, of which files named as images are used, filtered by
            `exclude_drawn`. An image of several sources is returned once.
        recursive: whether subfolders are searched, too; otherwise a warning gives the number of images in them, found
            among the first `MAX_ENTRIES_SEEN` files and folders.

    Raises:
        ValueError: a source has no image.
    """
    folders, found = list[str](), list[str]()
    for source in sources:
        if os.path.isdir(source):
            here = find_images(Path(source)) if recursive else filter_by_name(Path(source).iterdir(), is_image_name)
            if not here:
                hint = "" if recursive else "; --recursive also reads its subfolders"
                raise ValueError(f"{source}: no images ({', '.join(READ_SUFFIXES)}) in this folder{hint}")
            if not recursive:
                _warn_of_images_below(Path(source))
            folders.append(os.path.abspath(source))
        else:
            here = [Path(source)] if os.path.isfile(source) else []
            here = here or filter_by_name(map(Path, glob.glob(source, recursive=True)), is_image_name)
            if not here:
                raise ValueError(f"{source}: not a folder or file, and as a pattern it matches no image")
            folders += [os.path.dirname(os.path.abspath(path)) for path in here]
        found += [os.path.abspath(path) for path in here]
    return Path(os.path.commonpath(folders)), [Path(path) for path in dict.fromkeys(found)]


def _warn_of_images_below(folder: Path) -> None:
    num_seen, left_out, below = 0, list[Path](), _walk(folder, [], [])
    next(below, None)  # the folder itself
    for parent, names in below:
        left_out += [Path(parent, name) for name in names if is_image_name(name) and not is_drawn(Path(name))]
        num_seen += 1 + len(names)
        if num_seen >= MAX_ENTRIES_SEEN:
            break
    is_cut = num_seen >= MAX_ENTRIES_SEEN
    if left_out:
        least, are = "at least " if is_cut else "", "is" if len(left_out) == 1 else "are"
        warn(
            f"{folder}: {least}{format_count(len(left_out), 'image')} in subfolders {are} left out; the first: "
            f"{min(left_out)} (--recursive also reads these)"
        )
    elif is_cut:
        warn(
            f"{folder}: subfolders are left out; their first {num_seen:,} files and folders contain no image "
            "(--recursive reads all)"
        )


@dataclass(frozen=True)
class ImageFiles:
    """An `ImageSource` of images without labels; image ids are positions."""

    paths: tuple[Path, ...]
    sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels."""

    @property
    def image_ids(self) -> Int64[np.ndarray, " N"]:
        return np.arange(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def record(self, image: int) -> ImageRecord:
        """Return the image at a position, without labels."""
        height, width = self.sizes[image].tolist()
        return ImageRecord(image, self.paths[image], height, width, Labels.empty())

    def encoded(self, image: int) -> Path:
        """Return the path of the image at a position."""
        return self.paths[image]


def readable_sizes(
    paths: Sequence[Path], report: DataReport, *, stops: bool, num_images: int | None = None
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, "K 2"]]:
    """Return positions of the images whose header can be read, and their heights and widths after EXIF rotation.

    Args:
        report: counts the images that are left out.
        stops: whether an unreadable image is an error instead.
        num_images: number of images of the whole set, a share of which may be left out (None: the number of paths).

    Raises:
        ImageError: F8, F9, F10 as for `decode_image`, if `stops`.
        DataError: too many images were left out.
    """
    positions, sizes = [], []
    for position, size in enumerate(sizes_of(paths)):
        if not isinstance(size, ImageError):
            report.end_skip_streak()
            positions.append(position)
            sizes.append(size)
        elif stops:
            raise size
        else:
            report.count_skipped(size.code, str(size))
    report.raise_if_too_many(len(paths) if num_images is None else num_images)
    return np.array(positions, dtype=np.int64), np.array(sizes, dtype=np.int64).reshape(-1, 2)
