"""Edits of a good tar shard, each with the outcome it must have: these pairs and counts, or a refusal."""

import gzip
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np

Rng = np.random.Generator
Member = tuple[str, bytes]


@dataclass
class Case:
    """A shard that an edit changes, and the outcome it must have."""

    members: list[Member]
    pairs: dict[str, tuple[bytes, str]]
    """Image and caption by key."""
    rejected: int = 0
    failed: int = 0
    refused: str | None = None
    data: bytes | None = None

    def encoded(self) -> bytes:
        return packed(self.members) if self.data is None else self.data

    def rename(self, change: Callable[[str], str]) -> None:
        self.members = [(change(name), content) for name, content in self.members]


def good_case() -> Case:
    pairs = {f"{row:05d}": (bytes([row]) * (40 + 300 * row), f"caption {row} é") for row in range(5)}
    members = []
    for key, (image, caption) in pairs.items():
        members += [(f"{key}.jpg", image), (f"{key}.txt", caption.encode()), (f"{key}.json", b'{"status": "success"}')]
    return Case(members, pairs)


def packed(members: list[Member], kinds: dict[str, bytes] | None = None) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if kinds and name in kinds:
                info.type, info.linkname, info.size = kinds[name], "/etc/passwd", 0
                content = b""
            archive.addfile(info, BytesIO(content))
    return file.getvalue()


def _key(case: Case, rng: Rng) -> str:
    return list(case.pairs)[rng.integers(len(case.pairs))]


def _without(case: Case, *names: str) -> None:
    case.members = [member for member in case.members if member[0] not in names]


def _no_image(case: Case, rng: Rng) -> None:
    key = _key(case, rng)
    _without(case, f"{key}.jpg", *([f"{key}.txt"] if rng.integers(2) else []))
    del case.pairs[key]
    case.failed = 1


def _most_without_image(case: Case, rng: Rng) -> None:
    for row in range(100, 106 + int(rng.integers(50))):
        case.members.append((f"{row:05d}.{['txt', 'json'][rng.integers(2)]}", b"{}"))
    case.refused = "F13"


def _no_caption(case: Case, rng: Rng) -> None:
    key = _key(case, rng)
    _without(case, f"{key}.txt", *([f"{key}.json"] if rng.integers(2) else []))
    case.refused = "F13"


def _caption_elsewhere(case: Case, rng: Rng) -> None:
    key = _key(case, rng)
    caption = case.pairs[key][1]
    if rng.integers(2):
        case.rename(lambda name: name.replace(".txt", ".caption"))
        return
    _without(case, f"{key}.txt", f"{key}.json")
    case.members.append((f"{key}.json", json.dumps({"caption": caption}).encode()))


def _dots_in_keys(case: Case, rng: Rng) -> None:
    number = rng.integers(9)
    case.rename(lambda name: name.replace(".", f".v{number}.{number}.", 1))
    case.pairs = {f"{key}.v{number}.{number}": pair for key, pair in case.pairs.items()}


def _part_or_sample(case: Case, rng: Rng) -> None:
    key = _key(case, rng)
    case.members += [(f"{key}.1.jpg", b"x"), (f"{key}.1.txt", b"y")]
    case.refused = "F14"


def _parts(case: Case, rng: Rng) -> None:
    key = _key(case, rng)
    case.members += [(f"{key}.seg.png", b"x"), (f"{key}.cls", b"3"), (f"{key}.more.json", b"{}")]
    case.rejected = 3


def _twice(case: Case, rng: Rng) -> None:
    key, suffix = _key(case, rng), ["jpg", "txt", "json", "png", "caption"][rng.integers(5)]
    case.members.append((f"{key}.{suffix}", b"again"))
    case.refused = "F14"


def _unsafe(case: Case, rng: Rng) -> None:
    name = ["../out.jpg", "/abs.txt", "a/../../b.jpg", "x\\y.jpg"][rng.integers(4)]
    case.members.insert(int(rng.integers(len(case.members))), (name, b"x"))
    case.rejected = 1


def _links(case: Case, rng: Rng) -> None:
    kind = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE][rng.integers(4)]
    case.members.append(("zzz.jpg", b""))
    case.data = packed(case.members, {"zzz.jpg": kind})
    case.rejected = 1


def _order(case: Case, rng: Rng) -> None:
    case.members = [case.members[row] for row in rng.permutation(len(case.members)).tolist()]


def _spelling(case: Case, rng: Rng) -> None:
    image = [".JPG", ".jpeg", ".png", ".webp", ".gif", ".avif", ".TIFF"][rng.integers(7)]
    case.rename(lambda name: "./" * int(rng.integers(2)) + name.replace(".jpg", image).replace(".txt", ".TXT"))


def _folders(case: Case, _rng: Rng) -> None:
    case.rename(lambda name: f"part/{name}")
    case.pairs = {f"part/{key}": pair for key, pair in case.pairs.items()}


def _long_names(case: Case, rng: Rng) -> None:
    prefix = "long é " * int(rng.integers(20, 60))
    case.rename(lambda name: prefix + name)
    case.pairs = {prefix + key: pair for key, pair in case.pairs.items()}


def _cut(case: Case, rng: Rng) -> None:
    whole = packed(case.members)
    last = max(place for place, byte in enumerate(whole) if byte) + 1
    # Two blocks of zeros end an archive; with only one of them it is cut short.
    case.data = whole[: rng.integers(-(-last // 512) * 512 + 1024)]
    case.refused = "F13"


def _compressed(case: Case, _rng: Rng) -> None:
    case.data = gzip.compress(packed(case.members))
    case.refused = "F13"


def _huge_member(case: Case, rng: Rng) -> None:
    """Let the header claim 2^33 to 2^62 bytes, in the binary form of GNU tar, with a correct checksum."""
    case.refused = "F13"
    data = bytearray(packed(case.members))
    size = int(2 ** rng.integers(33, 62))
    data[124:136] = b"\x80" + size.to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}".encode() + b"\0 "
    case.data = bytes(data)


def _damaged_header(case: Case, rng: Rng) -> None:
    data = bytearray(packed(case.members))
    header = 1024 * int(rng.integers(0, 2))  # the header of the first image or of the first caption
    data[header + rng.integers(0, 100)] ^= 1 << int(rng.integers(8))
    case.data = bytes(data)
    case.refused = "F13"


def _latin_caption(case: Case, rng: Rng) -> None:
    key = _key(case, rng)
    case.members = [(name, b"caf\xe9" if name == f"{key}.txt" else content) for name, content in case.members]
    case.pairs[key] = (case.pairs[key][0], "caf\ufffd")


EDITS: dict[str, Callable[[Case, Rng], None]] = {
    edit.__name__.strip("_"): edit
    for edit in (
        _no_image, _most_without_image, _no_caption, _caption_elsewhere, _dots_in_keys, _part_or_sample, _parts, _twice,
        _unsafe, _links, _order, _spelling, _folders, _long_names, _cut, _compressed, _huge_member, _damaged_header,
        _latin_caption,
    )
}  # fmt: skip
