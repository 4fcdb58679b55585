"""Image-text pairs in tar shards, in the layout that img2dataset and WebDataset share.

A shard `00000.tar` holds, for every sample, `<key>.jpg`, `<key>.txt` (the caption) and optionally `<key>.json`.
Shards are read by position through an index (shard_index.py, which has the rules of names).
"""

import json
import tarfile
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np

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
from ovd.fault import Fault
from ovd.files import atomic_write, sha256_of, write_json
from ovd.first_of import first_of
from ovd.progress import progress
from ovd.warn import warn

MANIFEST_NAME = "manifest.json"
NUM_THREADS = 4
NUM_FAULTS = 100
"""Maximum number of faulty shards that an error names."""
COMPRESSED = ("*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz", "*.tar.zst")


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


def caption_fault(caption: str) -> Fault | None:
    """What makes a caption useless for training; None for one that can be read."""
    if not caption.strip():
        return Fault("F30", "the caption is empty")
    if "\ufffd" in caption:  # in the place of bad bytes; the embedding would be that of another text
        return Fault("F30", "the caption is not UTF-8")
    return None


def write_pair_shards(directory: Path, pairs: Iterable[Pair], *, pairs_per_shard: int) -> None:
    """Writes `00000.tar`, `00001.tar`, ... and, last, `manifest.json`.

    The bytes depend on the pairs alone. Every file appears under its name only when it is whole, and the manifest only
    when all shards are: a folder without one is an unfinished write.

    Raises:
        ValueError: the folder already holds shards, a key is not usable as a member name, or the keys do not ascend by
            length, then by character, as numbers do; so none comes twice, and none needs to be remembered.
    """
    if pairs_per_shard < 1:
        raise ValueError(f"pairs_per_shard is {pairs_per_shard}; it must be at least 1")
    manifest_path = directory / MANIFEST_NAME
    present = sorted(path.name for path in directory.glob("*.tar"))
    if present or manifest_path.exists():
        raise ValueError(
            f"{directory} already holds shards ({first_of(present, 3) or MANIFEST_NAME}), and none is overwritten; "
            "give another folder, or remove what an earlier import left unfinished"
        )
    directory.mkdir(parents=True, exist_ok=True)

    last_key = ""
    entries: list[dict[str, str | int]] = []
    remaining = iter(pairs)
    for first in remaining:
        name = f"{len(entries):05d}.tar"
        num_samples = 0
        with (
            atomic_write(directory / name, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for pair in chain([first], islice(remaining, pairs_per_shard - 1)):
                _check_key(pair.key, last_key)
                last_key = pair.key
                info = json.dumps(pair.info, sort_keys=True, ensure_ascii=False, allow_nan=False)
                _add_member(archive, f"{pair.key}.jpg", pair.image)
                _add_member(archive, f"{pair.key}.txt", pair.caption.encode())
                _add_member(archive, f"{pair.key}.json", info.encode())
                num_samples += 1
        sha256, num_bytes = sha256_of(directory / name), (directory / name).stat().st_size
        entries.append({"file": name, "samples": num_samples, "sha256": sha256, "bytes": num_bytes})

    write_json(manifest_path, {"shards": entries})


def list_shards(directory: Path) -> dict[str, ManifestEntry | None]:
    """The shards of a folder by file name, in order, none of them opened; None where there is no manifest.

    Raises:
        DataError: F13 no shards, compressed ones, or other shards than the manifest names.
    """
    compressed = sorted(path.name for pattern in COMPRESSED for path in directory.glob(pattern))
    if compressed:
        raise DataError(
            "F13",
            f"{directory}: {len(compressed)} compressed shards ({first_of(compressed, 3)}); shards are read by "
            f"position, so unpack them first: gunzip {directory}/{compressed[0]}",
        )
    manifest = _read_manifest(directory)
    names = sorted(path.name for path in directory.glob("*.tar"))
    if manifest is None:
        if not names:
            raise DataError("F13", f"{directory}: no .tar shards here")
        _notice_gaps(directory, names)
        return dict.fromkeys(names)
    missing, unknown = sorted(manifest.keys() - set(names)), sorted(set(names) - manifest.keys())
    if missing or unknown:
        raise DataError(
            "F13",
            f"{directory / MANIFEST_NAME}: shards missing from the folder: {first_of(missing, 20) or 'none'}; "
            f"shards not in the manifest: {first_of(unknown, 20) or 'none'}",
        )
    return {name: manifest[name] for name in names}


def _notice_gaps(directory: Path, names: list[str]) -> None:
    """Warn where shards are numbered and numbers are left out: a download may be unfinished."""
    numbers = sorted(int(Path(name).stem) for name in names if Path(name).stem.isdecimal())
    gaps = [number + 1 for number, following in pairwise(numbers) if following > number + 1]
    if gaps:
        warn(
            f"{directory}: the numbers of its shards have {len(gaps)} gaps, the first at {gaps[0]}, and "
            f"no {MANIFEST_NAME} says whether a shard is missing; the {len(names)} that are there are read",
            code="F13",
        )


class PairShards:
    """A folder of shards, read by position: `len(shards)`, `shards[i] -> Pair`, in the order of file name and first
    appearance of a key.

    Every shard is indexed, and compared with the manifest where there is one, when this is made: that reads each shard
    once from end to end. Without a manifest only the headers are read; a damaged header or a missing end still stops.
    A shard whose index is known is not read at all, only its size is compared.
    A member's name is nothing but a key: no file is ever written, and no pickle opened.

    Args:
        only: file names of the shards to open; all by default. The others are neither indexed nor read.
        known: what `index` gave for shards of these names before.
        listed: what `list_shards` gave for these shards, so that the folder is not listed again.

    Attributes:
        file_names: of the shards that are open, in order.
        left_out: file names of the folder's other shards, in order.
        rejected: members of the shards indexed here that are not used: unsafe names (absolute, `..`), links, devices,
            sparse files, pickles and any other suffix, parts of samples, and the rest of a sample with an unsafe
            member.
        num_failed: samples of these shards without an image, as failed downloads leave them.
        num_undecodable_captions: captions read so far that were not UTF-8 (their bad bytes read as U+FFFD).

    Raises:
        DataError: F13 no shards, or a shard that is damaged, has an image without a caption or differs from the
            manifest (the message names the shard, the samples expected and found, and the SHA-256), or a known one that
            has another size now. F14 a member twice, or one that may be of two samples. All shards are read before, so
            that the message names all faulty ones.
        ValueError: a shard of `only` is not in the folder.
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
            raise ValueError(f"{directory} has no shards {first_of(unknown, 20)}")
        self.file_names = tuple(name for name in listed if only is None or name in only)
        self.left_out = tuple(name for name in listed if only is not None and name not in only)
        known = known or {}
        self._indexes = {name: _check_size(directory / name, known[name]) for name in self.file_names if name in known}
        to_read = [name for name in self.file_names if name not in known]
        rejected: list[Rejected] = []
        faults: list[DataError] = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:  # hashing and reading let other threads run
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
        """How many members are not used, and the names of the first; how many samples have no image."""
        names = f", such as {', '.join(self._first_rejected)}" if self.rejected else ""
        failed = f"; {self.num_failed:,} samples have no image (failed downloads)" if self.num_failed else ""
        return f"{self.rejected:,} members of the shards are not used{names}{failed}"

    def __getitem__(self, position: int) -> Pair:
        """Reads one sample.

        Raises:
            IndexError: position outside 0..len-1.
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
            raise ValueError(f"{where}.json holds {type(info).__name__}, expected an object")
        return Pair(key=self.key(position), image=image, caption=caption, info=info)

    def image(self, position: int) -> bytes:
        """A sample's encoded image alone.

        Raises:
            IndexError: position outside 0..len-1.
            ValueError: the shard has changed since it was indexed.
        """
        return self._read(position, "image")

    def key(self, position: int) -> str:
        """A sample's key."""
        name, row = self._find(position)
        return self._indexes[name].key(row)

    def caption(self, position: int) -> str:
        """A sample's caption alone: its image is not read.

        Raises:
            IndexError: position outside 0..len-1.
            ValueError: the shard has changed since it was indexed.
        """
        return self._decode_caption(self._read(position, "caption"), position)

    def index(self, file_name: str) -> ShardIndex:
        """Of one of `file_names`, for `known` of another time."""
        return self._indexes[file_name]

    def positions(self, file_name: str) -> range:
        """Where the samples of one of `file_names` stand among all."""
        end = int(self._ends[self._numbers[file_name]])
        return range(end - len(self._indexes[file_name]), end)

    def location(self, position: int) -> str:
        """`shard:key` of a sample, for messages and reports."""
        return f"{self._find(position)[0]}:{self.key(position)}"

    def _read(self, position: int, member: str) -> bytes:
        name, row = self._find(position)
        return read_member(self.directory / name, self._indexes[name], row, member)

    def _decode_caption(self, content: bytes, position: int) -> str:
        name, row = self._find(position)
        if self._indexes[name].has_caption_in_info(row):
            return caption_in(content) or ""
        try:
            return content.decode()
        except UnicodeDecodeError:
            self._undecodable.add(position)
            return content.decode(errors="replace")

    def _find(self, position: int) -> tuple[str, int]:
        """File name of a sample's shard, and its row there."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside 0..{len(self) - 1}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        name = self.file_names[number]
        return name, position - int(self._ends[number]) + len(self._indexes[name])


def _check_key(key: str, last: str) -> None:
    # 94 + ".json" fits the 100 bytes of a ustar name; a dot would move the border between key and suffix.
    if not key or len(key.encode()) > 94 or any(char in "./\\" or not char.isprintable() for char in key):
        raise ValueError(f"key {key!r}: use 1 to 94 bytes without dots, slashes and control characters")
    if (len(key), key) <= (len(last), last):
        raise ValueError(f"key {key!r} comes after {last!r}; give keys that ascend by length, then by character")


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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("F13", f"{path} is not a shard manifest: {error!r}") from error


def _check_size(path: Path, index: ShardIndex) -> ShardIndex:
    """The index, where the shard still has its size."""
    num_bytes = path.stat().st_size
    if num_bytes != index.num_bytes:
        raise DataError(
            "F13",
            f"{path} has {num_bytes} bytes, and had {index.num_bytes} when it was indexed; label it again",
        )
    return index


def _joined(faults: list[DataError], num_shards: int) -> DataError:
    """One error for the faults of several shards."""
    if len(faults) == 1:
        return faults[0]
    lines = [f"{len(faults)} of {num_shards} shards are faulty:", *map(str, faults[:NUM_FAULTS])]
    if len(faults) > NUM_FAULTS:
        lines.append(f"and {len(faults) - NUM_FAULTS} more")
    return DataError(faults[0].code, "\n    ".join(lines))


def _index_or_fault(path: Path, expected: ManifestEntry | None) -> tuple[ShardIndex, Rejected] | DataError:
    """Indexes a shard and compares it with its manifest entry; or what is wrong with it."""
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
            # Nothing says how many samples there should be.
            return DataError(code, f"{path}: {fault}; found {num_found} samples before it, no {MANIFEST_NAME}")
        return DataError(
            code,
            f"{path}: {fault}; expected {expected.num_samples} samples, {expected.num_bytes} bytes, "
            f"sha256 {expected.sha256}; found {num_found} samples, {found.num_bytes} bytes, sha256 {found.sha256}",
        )
    assert indexed is not None
    return indexed
