"""Index of the samples in a tar shard, so that they can be read by position.

A shard is never streamed: a streaming reader takes a damaged header for the end of the archive and silently loses the
rest of the shard.

| members | read as |
|---|---|
| `k.jpg` (any image suffix), `k.txt` or `k.caption` | a sample: image and caption |
| `k.jpg`, `k.json` with a text `caption`, neither `k.txt` nor `k.caption` | a sample with this caption |
| `a.1.jpg`, `a.1.txt` | sample `a.1`: the key ends at the last dot |
| the same beside `a.jpg` or `a.txt` | stops (F14): they may be parts of sample `a` |
| `a.seg.png` without `a.seg.txt`; `._k.jpg`, which tar of macOS adds to `k.jpg`; any other suffix | not used, counted |
| `k.txt` or `k.json` without an image | a failed download, counted; stops if at least 5 and over half of a shard |
| `k.jpg` without a caption; an image or a caption twice | stops (F13; F14) |
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ovd.data.images.files import READ_SUFFIXES
from ovd.files import GZIP
from ovd.format_count import format_count
from ovd.shapes import Int64

MEMBER_NAMES = ("image", "caption", "info")

_MEMBER_OF_SUFFIX = {
    **{suffix.removeprefix("."): 0 for suffix in READ_SUFFIXES},
    "txt": 1,
    "caption": 1,
    "json": 2,
}
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")
"""Lone surrogates, halves of characters that JSON writes in two parts; UTF-8 text cannot contain them."""
_MACOS_PREFIX = "._"
"""Beginning of the names of files in which macOS keeps the attributes of others."""
_ABSENT = -1
_MIN_FAILED_TO_STOP = 5
_MAX_FAILED_SHARE = 0.5
_MAX_INFO_BYTES = 16 * 1024 * 1024
_LONGEST_KEY_IN_HEADER = 90
# POSIX: an archive ends with two blocks of zeros.
_END_MARKER_BYTES = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardIndex:
    """Byte offsets and sizes of the members of a shard's N samples, in the order in which their keys first appear."""

    keys: np.ndarray
    """Keys of the N samples, as UTF-8 byte strings."""
    offsets: Int64[np.ndarray, "N 3"]
    """Offset of the first byte of image, caption and info; -1 for an absent info member. If caption and info have the
    same offset, the caption is in the JSON."""
    sizes: Int64[np.ndarray, "N 3"]
    """Size of image, caption and info in bytes."""
    num_bytes: int
    """Size of the whole shard in bytes."""

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row].decode(errors="replace")

    def has_caption_in_info(self, row: int) -> bool:
        return bool(self.offsets[row, 1] == self.offsets[row, 2])


@dataclass(frozen=True)
class Rejected:
    """Members of a shard that no sample uses."""

    count: int
    first: tuple[str, ...]
    """Names of the first members, at most three."""
    num_failed: int
    """Number of samples with a caption or info but no image, which a downloader leaves after a failure."""


class ShardFault(Exception):
    """Error for a shard that cannot be indexed to its end; `num_found` samples begin before the fault."""

    def __init__(self, reason: str, num_found: int, code: str = "F13"):
        super().__init__(reason)
        self.num_found = num_found
        self.code = code


def index_shard(file: BinaryIO) -> tuple[ShardIndex, Rejected]:
    """Index a shard from all headers, the end of the archive, and the info of samples without a caption member.

    Raises:
        ShardFault: a header is damaged, the end is missing, a sample has an image but no caption, a member twice or an
            ambiguous name, or most samples have no image.
    """
    members = _sorted_members(file)
    num_bytes = file.tell()  # the end has been checked up to the last byte

    rows = dict(members.samples)  # incomplete samples are removed below
    rejected, num_failed = list(members.rejected), 0
    for key, sample in members.samples.items():
        _take_caption_from_info(file, sample)
        has_image, has_caption = (offset != _ABSENT for offset in sample.offsets[:2])
        is_part = sample.first_key != key
        if has_image and has_caption:
            if is_part and sample.first_key in members.samples:
                raise ShardFault(
                    f"{sample.names[0]} may be sample {key!r} or a part of sample {sample.first_key!r}; rename one",
                    len(rows),
                    "F14",
                )
            continue
        del rows[key]
        if is_part or key in members.keys_with_unsafe:
            rejected += sample.names
        elif has_image:
            raise ShardFault(
                f"sample {key!r} has no caption member and no `caption` string in its json member", len(rows)
            )
        else:
            num_failed += 1
    if num_failed >= _MIN_FAILED_TO_STOP and num_failed > _MAX_FAILED_SHARE * (num_failed + len(rows)):
        raise ShardFault(
            f"{num_failed} of {format_count(num_failed + len(rows), 'sample')} have no image member", len(rows)
        )
    index = ShardIndex(
        keys=np.array([key.encode(errors="surrogateescape") for key in rows], dtype=np.bytes_),
        offsets=np.array([sample.offsets for sample in rows.values()], dtype=np.int64).reshape(-1, 3),
        sizes=np.array([sample.sizes for sample in rows.values()], dtype=np.int64).reshape(-1, 3),
        num_bytes=num_bytes,
    )
    return index, Rejected(len(rejected), tuple(rejected[:3]), num_failed)


@dataclass
class _Sample:
    """Members of one key, as they are found."""

    first_key: str
    """Key by WebDataset's rule, which ends at the first dot."""
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [_ABSENT] * 3)
    sizes: list[int] = field(default_factory=lambda: [0] * 3)


@dataclass(frozen=True)
class _SortedMembers:
    """Members of a shard: those of samples by key, and the others."""

    samples: dict[str, _Sample] = field(default_factory=dict)
    """Samples, complete or not, in the order of their first members."""
    rejected: list[str] = field(default_factory=list)
    """Names of members that are unsafe, of macOS's attributes, or have an unused suffix."""
    keys_with_unsafe: set[str] = field(default_factory=set)
    """Keys, by both rules, of members that are not regular files or whose names lead out of the archive's folder."""


def _sorted_members(file: BinaryIO) -> _SortedMembers:
    """Read all headers of a shard.

    Raises:
        ShardFault: a header is damaged, the end is missing, or a sample has a member twice.
    """
    found = _SortedMembers()
    for member in _members(file, found.samples):
        name = member.name.removeprefix("./")
        key, suffix, first_key = _split_name(name)
        if not _is_safe(name) or not (member.isreg() or member.isdir()) or member.issparse():
            found.keys_with_unsafe.update((key, first_key))
            found.rejected.append(member.name)
            continue
        if member.isdir():
            continue
        slot = _MEMBER_OF_SUFFIX.get(suffix)
        if slot is None or PurePosixPath(name).name.startswith(_MACOS_PREFIX):
            found.rejected.append(member.name)
            continue
        sample = found.samples.setdefault(key, _Sample(first_key))
        sample.names.append(member.name)
        if sample.offsets[slot] != _ABSENT:
            raise ShardFault(f"sample {key!r} has its {MEMBER_NAMES[slot]} member twice", len(found.samples), "F14")
        sample.offsets[slot], sample.sizes[slot] = member.offset_data, member.size
    return found


def _take_caption_from_info(file: BinaryIO, sample: _Sample) -> None:
    """Use the info of a sample without a caption member as its caption, if it contains one."""
    image, caption, info = sample.offsets
    if image == _ABSENT or caption != _ABSENT or info == _ABSENT or sample.sizes[2] > _MAX_INFO_BYTES:
        return
    file.seek(info)
    if caption_in(file.read(sample.sizes[2])) is not None:
        sample.offsets[1], sample.sizes[1] = sample.offsets[2], sample.sizes[2]


def caption_in(info: bytes) -> str | None:
    """Return the text `caption` of a sample's JSON member; None if it has none or is not a JSON object."""
    try:
        caption = json.loads(info)["caption"]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError):
        return None
    return _HALF_CHARACTERS.sub("\ufffd", caption) if isinstance(caption, str) else None


def read_member(path: Path, index: ShardIndex, row: int, name: str) -> bytes:
    """Read one member of sample `row`; empty if the sample does not have it.

    The member's header is read with it, so that a shard that was rewritten after indexing does not return the bytes of
    another sample.

    Args:
        name: one of `MEMBER_NAMES`.

    Raises:
        ValueError: the member is no longer at its indexed offset.
    """
    member = MEMBER_NAMES.index(name)
    offset, size = int(index.offsets[row, member]), int(index.sizes[row, member])
    if offset == _ABSENT:
        return b""
    # Opened for each member: thousands of shards would exceed the limit on open files, and opening takes microseconds.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        block = os.pread(descriptor, tarfile.BLOCKSIZE + size, offset - tarfile.BLOCKSIZE)
    finally:
        os.close(descriptor)
    header, content = block[: tarfile.BLOCKSIZE], block[tarfile.BLOCKSIZE :]
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        is_there = found.size == size == len(content) and _may_be_of(found.name, index.keys[row])
    except tarfile.HeaderError:
        is_there = False
    if not is_there:
        raise ValueError(
            f"{path}: the {name} of {index.key(row)!r} is not at byte {offset}; the shard was changed after indexing"
        )
    return content


def _may_be_of(name: str, key: bytes) -> bool:
    """Return whether a header's name may belong to a sample's member; tar stores long and non-ASCII names elsewhere."""
    if len(key) > _LONGEST_KEY_IN_HEADER or not key.isascii():
        return True
    return _split_name(name.removeprefix("./"))[0] == key.decode()


def _members(file: BinaryIO, rows: dict) -> Iterator[tarfile.TarInfo]:
    """Yield every member up to the end marker.

    `tarfile` silently stops at a header with a bad checksum, at a truncated header and at a missing end marker. The
    bytes after the last member are therefore checked here: at least two zero blocks, and only zeros.
    """
    end = 0
    if file.read(len(GZIP)) == GZIP:
        raise ShardFault("the file is compressed with gzip, despite its name; unpack it first", 0)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if archive.offset <= end or member.size < 0:
                    raise ShardFault(f"the header at byte {member.offset} has a negative size", len(rows))
                end = archive.offset
                yield member
    except (tarfile.TarError, ValueError, OverflowError, OSError) as error:  # OSError: an offset beyond any file
        raise ShardFault(f"invalid tar archive after byte {end} ({error})", len(rows)) from error
    file.seek(end)
    num_zeros = 0
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise ShardFault(f"at byte {end} is neither a valid member header nor the end of the archive", len(rows))
        num_zeros += len(chunk)
    if num_zeros < _END_MARKER_BYTES:
        raise ShardFault(f"truncated: no end-of-archive marker after byte {end}", len(rows))


def _split_name(name: str) -> tuple[str, str, str]:
    """Split a name at its last dot into key and suffix; return them, and the key by WebDataset's rule (first dot)."""
    folder, slash, file_name = name.rpartition("/")
    stem, dot, suffix = file_name.rpartition(".")
    first = file_name.partition(".")[0]
    return folder + slash + (stem if dot else file_name), suffix.lower() if dot else "", folder + slash + first


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name)
