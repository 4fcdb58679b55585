"""Where the samples of a tar shard lie, so that they can be read by position.

A shard is never streamed: a streaming reader takes a damaged header for the end of the archive and loses the rest of
the shard without a word.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

MEMBER_NAMES = ("image", "caption", "info")

_MEMBER_OF_SUFFIX = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2}
_ABSENT = -1
_GZIP_SIGNATURE = b"\x1f\x8b"
# POSIX: an archive ends with two blocks of zeros.
_END_MARKER_BYTES = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardIndex:
    """Where the members of a shard's N samples lie, in the order of first appearance of their keys."""

    keys: np.ndarray
    """N UTF-8 byte strings."""
    offsets: Int64[np.ndarray, "N 3"]
    """Of the first byte of image, caption and info; -1 for an absent info member."""
    sizes: Int64[np.ndarray, "N 3"]
    """In bytes."""
    num_bytes: int
    """Of the whole shard."""

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row].decode(errors="replace")


@dataclass(frozen=True)
class Rejected:
    """Members of a shard that no sample uses."""

    count: int
    first: tuple[str, ...]
    """Names of at most three."""


class ShardFault(Exception):
    """A shard cannot be indexed to its end; `num_found` samples begin before the fault."""

    def __init__(self, reason: str, num_found: int, code: str = "F13"):
        super().__init__(reason)
        self.num_found = num_found
        self.code = code


def index_shard(file: BinaryIO) -> tuple[ShardIndex, Rejected]:
    """Reads all headers of a shard, and its end.

    Raises:
        ShardFault: a header is damaged, the end is missing, a sample has no image or no caption, or one of them twice.
    """
    rows: dict[str, tuple[list[int], list[int]]] = {}
    keys_with_rejected: set[str] = set()
    rejected = 0
    first_rejected: list[str] = []
    for member in _members(file, rows):
        name = member.name.removeprefix("./")
        key, suffix = _split_name(name)
        slot = _MEMBER_OF_SUFFIX.get(suffix)
        is_unsafe = not _is_safe(name) or not (member.isreg() or member.isdir()) or member.issparse()
        if is_unsafe:
            keys_with_rejected.add(key)
        elif member.isdir():
            continue
        if is_unsafe or slot is None:
            rejected += 1
            first_rejected = [*first_rejected, member.name][:3]
            continue
        offsets, sizes = rows.setdefault(key, ([_ABSENT] * 3, [0] * 3))
        if offsets[slot] != _ABSENT:
            raise ShardFault(f"sample {key!r} has its {MEMBER_NAMES[slot]} member twice", len(rows), "F14")
        offsets[slot], sizes[slot] = member.offset_data, member.size

    for key in [key for key, (offsets, _) in rows.items() if _ABSENT in offsets[:2]]:
        offsets, _ = rows[key]
        if key not in keys_with_rejected:
            missing = MEMBER_NAMES[offsets.index(_ABSENT)]
            raise ShardFault(f"sample {key!r} has no {missing} member", len(rows))
        rejected += sum(offset != _ABSENT for offset in offsets)
        del rows[key]
    index = ShardIndex(
        keys=np.array([key.encode(errors="surrogateescape") for key in rows], dtype=np.bytes_),
        offsets=np.array([offsets for offsets, _ in rows.values()], dtype=np.int64).reshape(-1, 3),
        sizes=np.array([sizes for _, sizes in rows.values()], dtype=np.int64).reshape(-1, 3),
        num_bytes=file.tell(),  # every byte of the end has been looked at
    )
    return index, Rejected(rejected, tuple(first_rejected))


def read_member(path: Path, index: ShardIndex, row: int, name: str) -> bytes:
    """One member of sample `row`: nothing where it has none.

    The member's header is read with it: a shard that was written anew since it was indexed does not give the bytes of
    another sample.

    Args:
        name: of MEMBER_NAMES.

    Raises:
        ValueError: no such member lies there any more.
    """
    member = MEMBER_NAMES.index(name)
    offset, size = int(index.offsets[row, member]), int(index.sizes[row, member])
    if offset == _ABSENT:
        return b""
    # Opened for each member: thousands of shards would pass the limit on open files, and an open costs microseconds.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        block = os.pread(descriptor, tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
    finally:
        os.close(descriptor)
    header, content = block[: tarfile.BLOCKSIZE], block[tarfile.BLOCKSIZE :]
    try:
        is_there = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size == len(content)
    except tarfile.HeaderError:
        is_there = False
    if not is_there:
        raise ValueError(f"{path}: the {name} of {index.key(row)!r} is not at byte {offset}; changed since indexed")
    return content


def _members(file: BinaryIO, rows: dict) -> Iterator[tarfile.TarInfo]:
    """Every member up to the end marker.

    `tarfile` stops in silence at a header with a bad checksum, at half a header and at a missing end, so what follows
    the last member is looked at here: two zero blocks at least, and nothing but zeros.
    """
    end = 0
    if file.read(2) == _GZIP_SIGNATURE:
        raise ShardFault("compressed by gzip, whatever its name says; unpack it first", 0)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if archive.offset <= end or member.size < 0:
                    raise ShardFault(f"the header at byte {member.offset} has a negative size", len(rows))
                end = archive.offset
                yield member
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ShardFault(f"not a whole tar archive after byte {end} ({error})", len(rows)) from error
    file.seek(end)
    num_zeros = 0
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise ShardFault(f"byte {end} starts neither a sound member header nor the end of the archive", len(rows))
        num_zeros += len(chunk)
    if num_zeros < _END_MARKER_BYTES:
        raise ShardFault(f"cut: no end-of-archive marker after byte {end}", len(rows))


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the folder and the file name up to its first dot are the key, the rest is the suffix."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    return folder + slash + stem, suffix.lower()


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name)
