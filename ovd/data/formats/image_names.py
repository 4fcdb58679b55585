"""Check that the images of a data set exist, and search for images by base name.

Annotation tools write paths of their own: "images/x.jpg", "..\\upload\\1\\x.jpg", "/data/upload/1/x.jpg", "x%20y.jpg",
"x.JPG". With the option `by_base_name`, an image is the one file below the image folder with the same last part of its
name. The case of the suffix and the Unicode form of accents are ignored, and percent signs are decoded if necessary.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from ovd.data.report import DataError, are_too_many
from ovd.format_count import format_count
from ovd.join_first import join_first

_NUM_NAMED = 3


def files_by_base_name(path: Path, files: Sequence[str], root: Path | None) -> tuple[str, ...]:
    """Return the files below a folder that have the images' base names, relative to it; other names are unchanged.

    Args:
        path: annotation file, for messages.
        root: the image folder; if None, all names are unchanged.

    Raises:
        DataError: F2 two files have the base name of one image, or two images that of one file.
    """
    if root is None:
        return tuple(files)
    found, clashes = _matched(files, root)
    if clashes:
        named = join_first(clashes, _NUM_NAMED, separator="; ")
        raise DataError("F2", f"{path}: {format_count(len(clashes), 'image')} cannot be found by base name: {named}")
    return tuple(file if match is None else match for file, match in zip(files, found, strict=True))


def with_slashes(name: str, folder: Path) -> str:
    """Return an image's path of any system with slashes; unchanged if the folder has a file with backslashes so called.

    Linux allows backslashes in names, and archives made on Windows leave such files.
    """
    return name if "\\" in name and os.path.isfile(folder / name) else name.replace("\\", "/")


def check_images_exist(
    path: Path, files: Sequence[str], root: Path | None, *, all_needed: bool, has_option: bool
) -> int:
    """Check that images exist in their folder, without opening them, and return the number of missing ones.

    Args:
        path: annotation file, for messages.
        all_needed: whether a single missing image is an error; otherwise at least 5 and 1 % of the images, or all,
            must be missing.
        has_option: whether the format has `by_base_name`; if so, the message says how many images it would find.

    Raises:
        DataError: F8 too many images are missing.
    """
    if root is None:
        return 0
    missing = [file for file, exists in zip(files, which_exist(files, root), strict=True) if not exists]
    are_few = not are_too_many(len(missing), len(files)) and len(missing) < len(files)
    if not missing or (are_few and not all_needed):
        return len(missing)
    if not root.is_dir():
        raise DataError("F8", f"{path}: the folder of its images, {root}, does not exist")
    count = "none" if len(missing) == len(files) else f"only {len(files) - len(missing):,}"
    hint = _hint(files, root) if has_option else ""
    raise DataError(
        "F8",
        f"{path}: {count} of {format_count(len(files), 'image')} found in {root}; "
        f"missing: {join_first(missing, _NUM_NAMED)}{hint}",
    )


def _hint(files: Sequence[str], root: Path) -> str:
    found, clashes = _matched(files, root)
    num_found = len(found) - found.count(None)
    if clashes:
        return f". By base name, {num_found:,} can be found, but not all base names are unique: {clashes[0]}"
    if num_found == len(files):
        return (
            f". All can be found by base name, the first as {found[0]}: set data.source.by_base_name=true "
            f"(tools: --by-base-name)"
        )
    if num_found:
        return f". By base name, {num_found:,} can be found"
    return f". No image has one of these base names{_others(root)}"


def _others(root: Path) -> str:
    from ovd.data.images.files import find_images  # imported here, since it needs Pillow

    others = find_images(root)
    return f"; the first of the {len(others):,} in the folder is {others[0].relative_to(root)}" if others else ""


def which_exist(files: Sequence[str], root: Path) -> list[bool]:
    """Return whether each file exists, from listings of the folders, which take a fraction of the time."""
    listings: dict[str, set[str]] = {}
    exist = []
    for file in files:
        folder, name = os.path.split(os.path.join(root, file))
        if folder not in listings:
            try:
                listings[folder] = {entry.name for entry in os.scandir(folder)}
            except (OSError, ValueError):
                listings[folder] = set()
        exist.append(name in listings[folder] or os.path.isfile(os.path.join(folder, name)))
    return exist


def _matched(files: Sequence[str], root: Path) -> tuple[list[str | None], list[str]]:
    """Return the file below the folder for each name, None if there is none, and descriptions of ambiguous matches."""
    from ovd.data.images.files import find_images  # imported here, since it needs Pillow

    by_name: dict[str, list[str]] = {}
    for image in find_images(root):
        by_name.setdefault(_with_low_suffix(image.name), []).append(image.relative_to(root).as_posix())
    taken: dict[str, str] = {}
    found: list[str | None] = []
    clashes = []
    for file in files:
        names = (os.path.basename(file), _base_name(file), _base_name(unquote(file)))
        candidates = next(filter(None, (by_name.get(_with_low_suffix(name)) for name in names)), [])
        found.append(candidates[0] if candidates else None)
        if len(candidates) > 1:
            clashes.append(f"{file} may be {' or '.join(candidates[:_NUM_NAMED])}")
        elif candidates and taken.setdefault(candidates[0], file) != file:
            clashes.append(f"{taken[candidates[0]]} and {file} are both {candidates[0]}")
    return found, clashes


def _base_name(file: str) -> str:
    return re.split(r"[/\\]", file)[-1]


def _with_low_suffix(name: str) -> str:
    """Return the name with its suffix in lower case, and letters with accents as single characters (Unicode's NFC)."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()
