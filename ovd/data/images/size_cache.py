"""Cache of the sizes of many images: reading a header takes far longer than getting a file's modification time.

The folder `OVD_CACHE`, by default ~/.cache/ovd, has a cache file per list of images. A size is used if the image file
has the same length and modification time as when the size was read; all others are read again. If a size is wrong
anyway, the loader finds out when it decodes the image, and counts it (F12).
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ovd.data.images.image_file import ImageError
from ovd.data.images.sizes import read_sizes
from ovd.files import atomic_write, cache_folder
from ovd.progress import progress
from ovd.shapes import Int64

MIN_IMAGES = 1000
"""Number of images below which sizes are not cached."""
_CHUNK_SIZE = 4096
_THREADS = 8


def sizes_of(paths: Sequence[Path]) -> list[tuple[int, int] | ImageError]:
    """Return height and width of each image, or its error, as `read_sizes` does, but faster the second time."""
    if len(paths) < MIN_IMAGES:
        return read_sizes(paths)
    file = _file_of(paths)
    rows = np.zeros((len(paths), 4), np.int64)  # time and length of the file, height and width of the image
    rows[:, :2] = _states(paths)
    before = _load(file, len(paths))
    is_known = (before[:, :2] == rows[:, :2]).all(axis=1) & (before[:, 2:] > 0).all(axis=1)
    rows[is_known] = before[is_known]
    sizes: list[tuple[int, int] | ImageError] = [(height, width) for height, width in rows[:, 2:].tolist()]
    unknown = np.flatnonzero(~is_known).tolist()
    starts = range(0, len(unknown), _CHUNK_SIZE)
    for start in progress(starts, len(starts), "image sizes"):
        part = unknown[start : start + _CHUNK_SIZE]
        for position, size in zip(part, read_sizes([paths[position] for position in part]), strict=True):
            sizes[position] = size
            if not isinstance(size, ImageError):
                rows[position, 2:] = size
    if unknown:
        _save(file, rows)
    return sizes


def _file_of(paths: Sequence[Path]) -> Path:
    names = "\n".join(os.path.abspath(path) for path in paths)
    # A name in JSON may have any lone surrogate, not only those of bytes that are not UTF-8.
    digest = hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()
    return cache_folder() / "image_sizes" / f"{digest[:32]}.npy"


def _states(paths: Sequence[Path]) -> Int64[np.ndarray, "N 2"]:
    """Return modification time in nanoseconds and length in bytes of each file; zeros for a missing file."""

    def of_part(part: Sequence[Path]) -> list[tuple[int, int]]:
        return [_state(path) for path in part]

    size = -(-len(paths) // _THREADS)
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(of_part, [paths[start : start + size] for start in range(0, len(paths), size)])
        return np.array([state for part in parts for state in part], np.int64)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a null character
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _load(file: Path, count: int) -> Int64[np.ndarray, "N 4"]:
    """Load the cached rows; all zero if there are none, or the file is damaged."""
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        rows = None
    if isinstance(rows, np.ndarray) and rows.shape == (count, 4) and rows.dtype == np.int64:
        return rows
    return np.zeros((count, 4), np.int64)


def _save(file: Path, rows: Int64[np.ndarray, "N 4"]) -> None:
    """Cache the rows; if the cache cannot be written, sizes are read again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "wb") as stream:
            np.save(stream, rows)
    except OSError:
        pass
