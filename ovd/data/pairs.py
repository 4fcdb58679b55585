"""Image-text pairs in tar shards, in the layout that img2dataset and WebDataset share.

A shard `00000.tar` holds, for every sample, `<key>.jpg`, `<key>.txt` (the caption) and optionally `<key>.json`.
Shards are read by position through an index, never streamed: a streaming reader takes a damaged header for the end of
the archive and loses the rest of the shard without a word.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ovd.data.report import DataError
from ovd.progress import progress

MANIFEST_NAME = "manifest.json"
NUM_THREADS = 4

_MEMBER_OF_SUFFIX = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2}
_MEMBER_NAMES = ("image", "caption", "info")
_ABSENT = -1
# POSIX: an archive ends with two blocks of zeros.
_END_MARKER_BYTES = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Pair:
    """One image and its caption."""

    key: str
    image: bytes
    """The encoded file, JPEG unless the shard says otherwise by its suffix."""
    caption: str
    info: dict
    """The sample's JSON member; empty where there is none."""


@dataclass(frozen=True)
class ManifestEntry:
    """What a folder's manifest says of one shard."""

    num_samples: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class _ShardIndex:
    """Where the members of a shard's N samples lie."""

    path: Path
    keys: np.ndarray
    """N UTF-8 byte strings."""
    offsets: np.ndarray
    """N x 3 (image, caption, info), int64; -1 for an absent info member."""
    sizes: np.ndarray
    """N x 3, int64."""
    rejected: int
    first_rejected: tuple[str, ...]


class _ShardFault(Exception):
    """A shard cannot be indexed to its end; `num_found` samples begin before the fault."""

    def __init__(self, reason: str, num_found: int, code: str = "F13"):
        super().__init__(reason)
        self.num_found = num_found
        self.code = code


def write_pair_shards(directory: Path, pairs: Iterable[Pair], *, pairs_per_shard: int) -> None:
    """Writes `00000.tar`, `00001.tar`, ... and, last, `manifest.json`.

    The bytes depend on the pairs alone. Every file appears under its name only when it is whole, and the manifest only
    when all shards are: a folder without one is an unfinished write.

    Raises:
        ValueError: the folder already holds shards, a key is not usable as a member name, or a key comes twice.
    """
    if pairs_per_shard < 1:
        raise ValueError(f"pairs_per_shard is {pairs_per_shard}; it must be at least 1")
    manifest_path = directory / MANIFEST_NAME
    present = sorted(path.name for path in directory.glob("*.tar"))
    if present or manifest_path.exists():
        raise ValueError(
            f"{directory} already holds shards ({', '.join(present[:3]) or MANIFEST_NAME}), and none is overwritten; "
            "give another folder, or remove what an earlier import left unfinished"
        )
    directory.mkdir(parents=True, exist_ok=True)

    seen_keys: set[str] = set()
    entries: list[dict[str, str | int]] = []
    remaining = iter(pairs)
    for first in remaining:
        name = f"{len(entries):05d}.tar"
        temporary = directory / f"{name}.tmp"
        num_samples = 0
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for pair in chain([first], islice(remaining, pairs_per_shard - 1)):
                _check_key(pair.key, seen_keys)
                info = json.dumps(pair.info, sort_keys=True, ensure_ascii=False, allow_nan=False)
                _add_member(archive, f"{pair.key}.jpg", pair.image)
                _add_member(archive, f"{pair.key}.txt", pair.caption.encode())
                _add_member(archive, f"{pair.key}.json", info.encode())
                num_samples += 1
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = temporary.stat().st_size
        temporary.replace(directory / name)
        entries.append({"file": name, "samples": num_samples, "sha256": sha256, "bytes": num_bytes})

    temporary = directory / f"{MANIFEST_NAME}.tmp"
    temporary.write_text(json.dumps({"shards": entries}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(manifest_path)


def list_shards(directory: Path) -> dict[str, ManifestEntry | None]:
    """The shards of a folder by file name, in order, none of them opened; None where there is no manifest.

    Raises:
        DataError: F13 no shards, or other shards than the manifest names.
    """
    manifest = _read_manifest(directory)
    names = sorted(path.name for path in directory.glob("*.tar"))
    if manifest is None:
        if not names:
            raise DataError("F13", f"{directory}: no .tar shards here")
        return dict.fromkeys(names)
    missing, unknown = sorted(manifest.keys() - set(names)), sorted(set(names) - manifest.keys())
    if missing or unknown:
        raise DataError(
            "F13",
            f"{directory / MANIFEST_NAME}: shards missing from the folder: {missing[:20]}; "
            f"shards not in the manifest: {unknown[:20]}",
        )
    return {name: manifest[name] for name in names}


class PairShards:
    """A folder of shards, read by position: `len(shards)`, `shards[i] -> Pair`, in the order of file name and first
    appearance of a key.

    Every shard is indexed, and compared with the manifest where there is one, when this is made: that reads each shard
    once from end to end. Without a manifest only the headers are read; a damaged header or a missing end still stops.
    A member's name is nothing but a key: no file is ever written, and no pickle opened.

    Args:
        only: file names of the shards to open; all by default. The others are neither indexed nor read.

    Attributes:
        file_names: of the shards that are open, in order.
        rejected: members that are not used: unsafe names (absolute, `..`), links, devices, sparse files, pickles and
            any other suffix (what follows the name's first dot), and the rest of a sample with an unsafe member.
        num_undecodable_captions: captions read so far that were not UTF-8 (their bad bytes read as U+FFFD).

    Raises:
        DataError: F13 no shards, or a shard that is damaged, has half a sample or differs from the manifest: the
            message names the shard, the samples expected and found, and the SHA-256. F14 a member twice.
        ValueError: a shard of `only` is not in the folder.
    """

    def __init__(self, directory: Path, *, only: Collection[str] | None = None):
        self.directory = directory
        listed = list_shards(directory)
        unknown = [] if only is None else sorted(set(only) - listed.keys())
        if unknown:
            raise ValueError(f"{directory} has no shards {unknown[:20]}")
        chosen = [(directory / name, entry) for name, entry in listed.items() if only is None or name in only]
        with ThreadPoolExecutor(NUM_THREADS) as pool:  # hashing and reading let other threads run
            indexed = pool.map(lambda shard: _index_checked(*shard), chosen)
            self._shards = list(progress(indexed, len(chosen), "indexing shards"))
        self.file_names = tuple(shard.path.name for shard in self._shards)
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards], dtype=np.int64)
        self.rejected = sum(shard.rejected for shard in self._shards)
        self._first_rejected = next((shard.first_rejected for shard in self._shards if shard.rejected), ())
        self._undecodable: set[int] = set()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_undecodable_captions(self) -> int:
        return len(self._undecodable)

    def describe_rejected(self) -> str:
        """How many members are not used, and the names of the first."""
        names = f", such as {', '.join(self._first_rejected)} (a key ends at its first dot)" if self.rejected else ""
        return f"{self.rejected:,} members of the shards are not used{names}"

    def __getitem__(self, position: int) -> Pair:
        """Reads one sample.

        Raises:
            IndexError: position outside 0..len-1.
            ValueError: the shard has shrunk since it was indexed, or the info member is not a JSON object.
        """
        shard, row = self._find(position)
        key = shard.keys[row].decode(errors="replace")
        image, caption_bytes, info_bytes = (_read_member(shard, row, member) for member in _MEMBER_NAMES)
        caption = self._decode_caption(caption_bytes, position)
        try:
            info = json.loads(info_bytes) if info_bytes else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shard.path}:{key}.json is not JSON: {error}") from error
        if not isinstance(info, dict):
            raise ValueError(f"{shard.path}:{key}.json holds {type(info).__name__}, expected an object")
        return Pair(key=key, image=image, caption=caption, info=info)

    def image(self, position: int) -> bytes:
        """A sample's encoded image alone.

        Raises:
            IndexError: position outside 0..len-1.
            ValueError: the shard has shrunk since it was indexed.
        """
        return _read_member(*self._find(position), "image")

    def key(self, position: int) -> str:
        """A sample's key."""
        shard, row = self._find(position)
        return shard.keys[row].decode(errors="replace")

    def caption(self, position: int) -> str:
        """A sample's caption alone: its image is not read.

        Raises:
            IndexError: position outside 0..len-1.
            ValueError: the shard has shrunk since it was indexed.
        """
        return self._decode_caption(_read_member(*self._find(position), "caption"), position)

    def keys(self, file_name: str) -> tuple[str, ...]:
        """Of all samples of one of `file_names`."""
        shard = self._shards[self.file_names.index(file_name)]
        return tuple(key.decode(errors="replace") for key in shard.keys.tolist())

    def positions(self, file_name: str) -> range:
        """Where the samples of one of `file_names` stand among all."""
        row = self.file_names.index(file_name)
        end = int(self._ends[row])
        return range(end - len(self._shards[row].keys), end)

    def location(self, position: int) -> str:
        """`shard:key` of a sample, for messages and reports."""
        return f"{self._find(position)[0].path.name}:{self.key(position)}"

    def _decode_caption(self, content: bytes, position: int) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError:
            self._undecodable.add(position)
            return content.decode(errors="replace")

    def _find(self, position: int) -> tuple[_ShardIndex, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside 0..{len(self) - 1}")
        shard_row = int(np.searchsorted(self._ends, position, side="right"))
        shard = self._shards[shard_row]
        return shard, position - int(self._ends[shard_row]) + len(shard.keys)


def _check_key(key: str, seen_keys: set[str]) -> None:
    # 94 + ".json" fits the 100 bytes of a ustar name; a dot would move the border between key and suffix.
    if not key or len(key.encode()) > 94 or any(char in "./\\" or not char.isprintable() for char in key):
        raise ValueError(f"key {key!r}: use 1 to 94 bytes without dots, slashes and control characters")
    if key in seen_keys:
        raise ValueError(f"key {key!r} comes twice")
    seen_keys.add(key)


def _add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, owner names empty
    member.size = len(content)
    member.mode = 0o644
    archive.addfile(member, BytesIO(content))


def _read_manifest(directory: Path) -> dict[str, ManifestEntry] | None:
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        rows = json.loads(path.read_bytes())["shards"]
        return {row["file"]: ManifestEntry(int(row["samples"]), str(row["sha256"]), int(row["bytes"])) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("F13", f"{path} is not a shard manifest: {error!r}") from error


def _index_checked(path: Path, expected: ManifestEntry | None) -> _ShardIndex:
    """Indexes a shard and compares it with its manifest entry."""
    with path.open("rb") as file:
        fault, code = "", "F13"
        index = None
        try:
            index = _index_shard(path, file)
            num_found = len(index.keys)
        except _ShardFault as error:
            fault, code, num_found = str(error), error.code, error.num_found
        if expected is not None:
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            num_bytes = path.stat().st_size
            found = ManifestEntry(num_found, sha256, num_bytes)
            if not fault and found != expected:
                fault = "differs from the manifest"
    if fault:
        if expected is None:
            # Nothing says how many samples there should be.
            raise DataError(code, f"{path}: {fault}; found {num_found} samples before it, no {MANIFEST_NAME}")
        raise DataError(
            code,
            f"{path}: {fault}; expected {expected.num_samples} samples, {expected.num_bytes} bytes, "
            f"sha256 {expected.sha256}; found {num_found} samples, {num_bytes} bytes, sha256 {sha256}",
        )
    assert index is not None
    return index


def _index_shard(path: Path, file: BinaryIO) -> _ShardIndex:
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
            raise _ShardFault(f"sample {key!r} has its {_MEMBER_NAMES[slot]} member twice", len(rows), "F14")
        offsets[slot], sizes[slot] = member.offset_data, member.size

    for key in [key for key, (offsets, _) in rows.items() if _ABSENT in offsets[:2]]:
        offsets, _ = rows[key]
        if key not in keys_with_rejected:
            missing = _MEMBER_NAMES[offsets.index(_ABSENT)]
            raise _ShardFault(f"sample {key!r} has no {missing} member", len(rows))
        rejected += sum(offset != _ABSENT for offset in offsets)
        del rows[key]
    return _ShardIndex(
        path=path,
        keys=np.array([key.encode(errors="surrogateescape") for key in rows], dtype=np.bytes_),
        offsets=np.array([offsets for offsets, _ in rows.values()], dtype=np.int64).reshape(-1, 3),
        sizes=np.array([sizes for _, sizes in rows.values()], dtype=np.int64).reshape(-1, 3),
        rejected=rejected,
        first_rejected=tuple(first_rejected),
    )


def _members(file: BinaryIO, rows: dict) -> Iterator[tarfile.TarInfo]:
    """Every member up to the end marker.

    `tarfile` stops in silence at a header with a bad checksum, at half a header and at a missing end, so what follows
    the last member is looked at here: two zero blocks at least, and nothing but zeros.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if archive.offset <= end or member.size < 0:
                    raise _ShardFault(f"the header at byte {member.offset} has a negative size", len(rows))
                end = archive.offset
                yield member
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _ShardFault(f"not a whole tar archive after byte {end} ({error})", len(rows)) from error
    file.seek(end)
    num_zeros = 0
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise _ShardFault(f"byte {end} starts neither a sound member header nor the end of the archive", len(rows))
        num_zeros += len(chunk)
    if num_zeros < _END_MARKER_BYTES:
        raise _ShardFault(f"cut: no end-of-archive marker after byte {end}", len(rows))


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the folder and the file name up to its first dot are the key, the rest is the suffix."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    return folder + slash + stem, suffix.lower()


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name)


def _read_member(shard: _ShardIndex, row: int, name: str) -> bytes:
    """Nothing where the sample has no such member."""
    member = _MEMBER_NAMES.index(name)
    offset, size = int(shard.offsets[row, member]), int(shard.sizes[row, member])
    if offset == _ABSENT:
        return b""
    # Opened for each member: thousands of shards would pass the limit on open files, and an open costs microseconds.
    descriptor = os.open(shard.path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise ValueError(f"{shard.path}: {len(content)} of {size} bytes at {offset}; changed since indexed")
    return content
