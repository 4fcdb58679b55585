"""Writer of image-text pairs to tar shards, with a manifest."""

import json
import tarfile
from collections.abc import Iterable
from io import BytesIO
from itertools import chain, islice
from pathlib import Path

from ovd.data.pairs.manifest import MANIFEST_NAME
from ovd.data.pairs.pair import Pair
from ovd.files import atomic_write, sha256_of, write_json
from ovd.join_first import join_first


def write_pair_shards(directory: Path, pairs: Iterable[Pair], *, pairs_per_shard: int) -> None:
    """Write `00000.tar`, `00001.tar`, ... and, last, `manifest.json`.

    The bytes depend only on the pairs. Every file appears under its name only when it is complete, and the manifest
    only when all shards are complete: a folder without a manifest is an unfinished write. Keys must ascend by length,
    then by character, as numbers do, so that duplicates are found without remembering all keys.

    Raises:
        ValueError: the folder already holds shards, a key is not usable as a member name, or the keys do not ascend.
    """
    if pairs_per_shard < 1:
        raise ValueError(f"pairs_per_shard is {pairs_per_shard}; it must be at least 1")
    manifest_path = directory / MANIFEST_NAME
    present = sorted(path.name for path in directory.glob("*.tar"))
    if present or manifest_path.exists():
        raise ValueError(
            f"{directory} already contains shards ({join_first(present, 3) or MANIFEST_NAME}), which are kept; "
            "give another folder, or delete the files of an unfinished import"
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


def _check_key(key: str, last: str) -> None:
    # 94 + ".json" fits the 100 bytes of a ustar name; a dot would move the border between key and suffix.
    if not key or len(key.encode()) > 94 or any(char in "./\\" or not char.isprintable() for char in key):
        raise ValueError(f"key {key!r}: use 1 to 94 bytes without dots, slashes and control characters")
    if (len(key), key) <= (len(last), last):
        raise ValueError(f"key {key!r} follows {last!r}; keys must ascend by length, then by character")


def _add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, owner names empty
    member.size = len(content)
    member.mode = 0o644
    archive.addfile(member, BytesIO(content))
