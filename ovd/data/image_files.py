"""Image files as readers of annotations find them: which files of a folder are images, and their sizes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ovd.data.images import ImageError, read_sizes
from ovd.data.report import DataReport

READ_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
"""Usual suffixes of the formats that are read."""

# Files with these suffixes are images too: listed with the others, so that one that is unreadable is counted (F9).
_OTHER_SUFFIXES = (".heic", ".dng", ".jfif", ".jpe", ".j2k", ".mpo", ".pfm", ".ppm")


def is_image_name(name: str) -> bool:
    """Whether a file's name has the suffix of an image; hidden files count as none."""
    return not name.startswith(".") and name.lower().endswith(READ_SUFFIXES + _OTHER_SUFFIXES)


def images_below(folder: Path) -> list[Path]:
    """All images in a folder and the folders below it, by path; symbolic links are followed."""
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(parent, name) for parent, _, names in walk for name in names if is_image_name(name))


def readable_sizes(
    paths: Sequence[Path], report: DataReport, *, stops: bool
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, "K 2"]]:
    """Positions of the images whose header can be read, and their heights and widths as the loader will see them.

    Args:
        report: counts the images that are left out.
        stops: whether an unreadable image is an error instead.

    Raises:
        ImageError: F8, F9, F10 as `decode_image`, if `stops`.
        DataError: too many images were left out.
    """
    positions, sizes = [], []
    for position, size in enumerate(read_sizes(paths)):
        if not isinstance(size, ImageError):
            report.looked_at()
            positions.append(position)
            sizes.append(size)
        elif stops:
            raise size
        else:
            report.skipped(size.code, str(size))
    report.raise_if_too_many(len(paths))
    return np.array(positions, dtype=np.int64), np.array(sizes, dtype=np.int64).reshape(-1, 2)
