"""Image-text pairs in tar shards, in the layout that img2dataset and WebDataset share.

A shard `00000.tar` holds, for every sample, `<key>.jpg`, `<key>.txt` (the caption) and optionally `<key>.json`.
Shards are read by position through an index (shard_index.py, which documents the naming rules).
"""

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ovd.data.pairs.manifest import MANIFEST_NAME, ManifestEntry, list_shards
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.shard_index import (
    MEMBER_NAMES,
    Rejected,
    ShardFault,
    ShardIndex,
    caption_in,
    index_shard,
    read_member,
)
from ovd.data.report import DataError
from ovd.files import sha256_of
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.progress import progress

NUM_THREADS = 4
NUM_FAULTS = 100
"""Maximum number of faulty shards that an error message names."""


class PairShards:
    """Image-text pairs in a folder of shards, read by position: `len(shards)`, `shards[i] -> Pair`.

    Pairs are in the order of file names and, within a shard, of the first appearance of their keys.

    The constructor indexes every shard and compares it with the manifest if there is one, which reads each shard once
    from end to end. Without a manifest only the headers are read; a damaged header or a missing end is still an error.
    A shard with a known index is not read at all; only its size is compared. Member names serve only as keys: no file
    is ever written, and no pickle is opened.

    Args:
        only: file names of the shards to open; all by default. The others are neither indexed nor read.
        known: indexes of shards by file name, from an earlier call of `index`.
        listed: result of `list_shards` for these shards, so that the folder is not listed again.

    Attributes:
        file_names: file names of the open shards, in order.
        left_out: file names of the folder's other shards, in order.
        rejected: number of unused members in the shards indexed here: unsafe names (absolute, `..`), links, devices,
            sparse files, attributes of macOS, pickles and any other suffix, parts of samples, and the remaining
            members of a sample with an unsafe member.
        num_failed: number of samples in these shards without an image, as failed downloads leave them.
        num_undecodable_captions: number of captions read so far that were not UTF-8 (invalid bytes become U+FFFD).

    Raises:
        DataError: F13 there are no shards, or a shard is damaged, has an image without a caption or differs from the
            manifest (the message gives the shard, the expected and found samples, and the SHA-256), or a known shard
            has changed its size. F14 a member occurs twice, or may belong to two samples. All shards are read before
            the error is raised, so that its message lists the faulty ones, up to `NUM_FAULTS`.
        ValueError: a shard in `only` is not in the folder.
    """

    def __init__(
        self,
        directory: Path,
        *,
        only: Collection[str] | None = None,
        known: Mapping[str, ShardIndex] | None = None,
        listed: Mapping[str, ManifestEntry | None] | None = None,
    ):
        self.directory = directory
        listed = list_shards(directory) if listed is None else listed
        unknown = [] if only is None else sorted(set(only) - listed.keys())
        if unknown:
            raise ValueError(f"{directory} has no shards {join_first(unknown, 20)}")
        self.file_names = tuple(name for name in listed if only is None or name in only)
        self.left_out = tuple(name for name in listed if only is not None and name not in only)
        known = known or {}
        self._indexes = {name: _check_size(directory / name, known[name]) for name in self.file_names if name in known}
        to_read = [name for name in self.file_names if name not in known]
        rejected: list[Rejected] = []
        faults: list[DataError] = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:  # hashing and reading release the GIL
            indexed = pool.map(lambda name: (name, _index_or_fault(directory / name, listed[name])), to_read)
            for name, result in progress(indexed, len(to_read), "indexing shards"):
                if isinstance(result, DataError):
                    faults.append(result)
                else:
                    self._indexes[name], of_shard = result
                    rejected.append(of_shard)
        if faults:
            raise _joined(faults, len(to_read))
        self._numbers = {name: number for number, name in enumerate(self.file_names)}
        self._ends = np.cumsum([len(self._indexes[name]) for name in self.file_names], dtype=np.int64)
        self.rejected = sum(of_shard.count for of_shard in rejected)
        self.num_failed = sum(of_shard.num_failed for of_shard in rejected)
        self._first_rejected = next((of_shard.first for of_shard in rejected if of_shard.count), ())
        self._undecodable: set[int] = set()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_undecodable_captions(self) -> int:
        return len(self._undecodable)

    def describe_rejected(self) -> str:
        """Describe the unused members by number and first names, and the number of samples without an image."""
        names = f", such as {', '.join(self._first_rejected)}" if self.rejected else ""
        failed = (
            f"; {format_count(self.num_failed, 'sample')} without an image (failed downloads)"
            if self.num_failed
            else ""
        )
        return f"{format_count(self.rejected, 'member')} of the shards not used{names}{failed}"

    def __getitem__(self, position: int) -> Pair:
        """Read one sample.

        Raises:
            IndexError: `position` is outside 0..len-1.
            ValueError: the shard has changed since it was indexed, or the info member is not a JSON object.
        """
        image, caption_bytes, info_bytes = (self._read(position, member) for member in MEMBER_NAMES)
        caption = self._decode_caption(caption_bytes, position)
        try:
            info = json.loads(info_bytes) if info_bytes else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.directory / self.location(position)}.json is not JSON: {error}") from error
        if not isinstance(info, dict):
            where = self.directory / self.location(position)
            raise ValueError(f"{where}.json contains a {type(info).__name__}, not an object")
        return Pair(key=self.key(position), image=image, caption=caption, info=info)

    def image(self, position: int) -> bytes:
        """Read only the encoded image of a sample.

        Raises:
            IndexError: `position` is outside 0..len-1.
            ValueError: the shard has changed since it was indexed.
        """
        return self._read(position, "image")

    def key(self, position: int) -> str:
        """Return the key of a sample."""
        name, row = self._find(position)
        return self._indexes[name].key(row)

    def caption(self, position: int) -> str:
        """Read only the caption of a sample, not its image.

        Raises:
            IndexError: `position` is outside 0..len-1.
            ValueError: the shard has changed since it was indexed.
        """
        return self._decode_caption(self._read(position, "caption"), position)

    def index(self, file_name: str) -> ShardIndex:
        """Return the index of the shard `file_name`, which can be passed as `known` later."""
        return self._indexes[file_name]

    def positions(self, file_name: str) -> range:
        """Return the positions of the samples in the shard `file_name`."""
        end = int(self._ends[self._numbers[file_name]])
        return range(end - len(self._indexes[file_name]), end)

    def location(self, position: int) -> str:
        """Return `shard:key` of a sample, for messages and reports."""
        return f"{self._find(position)[0]}:{self.key(position)}"

    def _read(self, position: int, member: str) -> bytes:
        name, row = self._find(position)
        return read_member(self.directory / name, self._indexes[name], row, member)

    def _decode_caption(self, content: bytes, position: int) -> str:
        name, row = self._find(position)
        if self._indexes[name].has_caption_in_info(row):
            return caption_in(content) or ""
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._undecodable.add(position)
            return content.decode(errors="replace")

    def _find(self, position: int) -> tuple[str, int]:
        """Return the file name of a sample's shard, and the sample's row in it."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside 0..{len(self) - 1}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        name = self.file_names[number]
        return name, position - int(self._ends[number]) + len(self._indexes[name])


def _check_size(path: Path, index: ShardIndex) -> ShardIndex:
    """Return the index if the shard still has the indexed size, else raise a DataError (F13)."""
    num_bytes = path.stat().st_size
    if num_bytes != index.num_bytes:
        raise DataError(
            "F13",
            f"{path} has {num_bytes} bytes, but had {index.num_bytes} when it was indexed; label it again",
        )
    return index


def _joined(faults: list[DataError], num_shards: int) -> DataError:
    """Join the faults of several shards into one error."""
    if len(faults) == 1:
        return faults[0]
    lines = [f"{len(faults)} of {format_count(num_shards, 'shard')} cannot be used:", *map(str, faults[:NUM_FAULTS])]
    if len(faults) > NUM_FAULTS:
        lines.append(f"and {len(faults) - NUM_FAULTS} more")
    return DataError(faults[0].code, "\n    ".join(lines))


def _index_or_fault(path: Path, expected: ManifestEntry | None) -> tuple[ShardIndex, Rejected] | DataError:
    """Index a shard and compare it with its manifest entry; return the index and rejected members, or the error."""
    fault, code = "", "F13"
    indexed = None
    try:
        with path.open("rb") as file:
            indexed = index_shard(file)
        num_found = len(indexed[0])
    except ShardFault as error:
        fault, code, num_found = str(error), error.code, error.num_found
    if expected is not None:
        found = ManifestEntry(num_found, sha256_of(path), path.stat().st_size)
        if not fault and found != expected:
            fault = "differs from the manifest"
    if fault:
        if expected is None:
            # Without a manifest, the expected number of samples is unknown.
            return DataError(
                code, f"{path}: {fault}; found {format_count(num_found, 'sample')} before it, no {MANIFEST_NAME}"
            )
        return DataError(
            code,
            f"{path}: {fault}; expected {format_count(expected.num_samples, 'sample')}, {expected.num_bytes} bytes, "
            f"sha256 {expected.sha256}; found {format_count(num_found, 'sample')}, {found.num_bytes} bytes, "
            f"sha256 {found.sha256}",
        )
    assert indexed is not None
    return indexed
