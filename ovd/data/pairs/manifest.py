"""Listing of the shards in a folder, and the manifest that describes each of them."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ovd.data.report import DataError
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.warn import warn

MANIFEST_NAME = "manifest.json"
COMPRESSED = ("*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz", "*.tar.zst")


@dataclass(frozen=True)
class ManifestEntry:
    """Entry of one shard in a folder's manifest."""

    num_samples: int
    sha256: str
    num_bytes: int


def list_shards(directory: Path) -> dict[str, ManifestEntry | None]:
    """List the shards of a folder by file name, in order, without opening them.

    Returns:
        File names with their manifest entries, all None if there is no manifest.

    Raises:
        DataError: F13 there are no shards, some are compressed, or they differ from those in the manifest.
    """
    compressed = sorted(path.name for pattern in COMPRESSED for path in directory.glob(pattern))
    if compressed:
        raise DataError(
            "F13",
            f"{directory}: {format_count(len(compressed), 'compressed shard')} ({join_first(compressed, 3)}); shards "
            f"are read by position, so unpack them first: gunzip {directory}/{compressed[0]}",
        )
    manifest = _read_manifest(directory)
    names = sorted(path.name for path in directory.glob("*.tar"))
    if manifest is None:
        if not names:
            raise DataError("F13", f"{directory}: the folder has no .tar shards")
        _notice_gaps(directory, names)
        return dict.fromkeys(names)
    missing, unknown = sorted(manifest.keys() - set(names)), sorted(set(names) - manifest.keys())
    if missing or unknown:
        raise DataError(
            "F13",
            f"{directory / MANIFEST_NAME}: shards missing from the folder: {join_first(missing, 20) or 'none'}; "
            f"shards not in the manifest: {join_first(unknown, 20) or 'none'}",
        )
    return {name: manifest[name] for name in names}


def _notice_gaps(directory: Path, names: list[str]) -> None:
    """Warn if the numbers of numbered shards have gaps, since a download may be unfinished."""
    numbers = sorted(int(Path(name).stem) for name in names if Path(name).stem.isdecimal())
    gaps = [number + 1 for number, following in pairwise(numbers) if following > number + 1]
    if gaps:
        warn(
            f"{directory}: the shard numbers have {format_count(len(gaps), 'gap')}, the first at {gaps[0]}, and "
            f"no {MANIFEST_NAME} says whether a shard is missing; the existing {len(names)} are read",
            code="F13",
        )


def _read_manifest(directory: Path) -> dict[str, ManifestEntry] | None:
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        rows = json.loads(path.read_bytes())["shards"]
        entries = {
            row["file"]: ManifestEntry(int(row["samples"]), str(row["sha256"]), int(row["bytes"])) for row in rows
        }
        if wrong := [name for name in entries if not isinstance(name, str)]:
            raise TypeError(f"the file name {wrong[0]!r} is not a string")
        if len(entries) < len(rows):
            raise ValueError("a shard is listed twice")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            "F13", f"{path} is not a shard manifest ({error!r}); correct it, or delete it to read shards without one"
        ) from error
    return entries
