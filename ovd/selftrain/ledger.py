"""The ledger beside a shard's labels file: a JSON file with the source, the settings and the counts of the labels.

It is written after the labels (labels.py), so a shard that has a ledger is done.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ovd.data.pairs.manifest import list_shards
from ovd.data.pairs.tar import PairShards
from ovd.files import sha256_of, write_json
from ovd.format_count import format_count
from ovd.progress import progress
from ovd.selftrain.labels import read_shard_index, shard_name

_THREADS = 4


@dataclass(frozen=True)
class LabelCounts:
    """Counts of pairs, boxes and texts in one or several shards."""

    pairs: int
    pairs_with_boxes: int
    capped_pairs: int
    """Number of pairs with more boxes than the labels contain."""
    boxes: int
    texts: int
    """Number of texts, each counted once per shard."""
    long_texts: int
    """Number of texts that fill the text tower's context and may have been cut."""
    reasons: dict[str, int]
    """Numbers of pairs that were not given to the teacher, by the code of the reason."""

    def summary(self) -> str:
        """Describe the counts in a sentence."""
        reasons = ", ".join(f"{count} {code}" for code, count in self.reasons.items()) or "none"
        return (
            f"{format_count(self.pairs, 'pair')}, {self.pairs_with_boxes} with boxes, "
            f"{format_count(self.boxes, 'box', 'boxes')} ({self.capped_pairs} of the pairs had more); "
            f"{format_count(self.texts, 'text')} ({self.long_texts} fill the text tower's context); pairs not labeled: "
            f"{reasons}"
        )


def total_counts(counts: Sequence[LabelCounts]) -> LabelCounts:
    """Sum the counts of several shards."""
    numbers = [field.name for field in fields(LabelCounts) if field.name != "reasons"]
    reasons = sum((Counter(of_shard.reasons) for of_shard in counts), Counter())
    return LabelCounts(
        **{name: sum(getattr(of_shard, name) for of_shard in counts) for name in numbers},
        reasons=dict(sorted(reasons.items())),
    )


@dataclass(frozen=True)
class Ledger:
    """The content of a ledger."""

    shard: str
    """File name of the shard."""
    shard_sha256: str
    labels_sha256: str
    settings: dict[str, Any]
    """All settings that the labels depend on."""
    counts: LabelCounts
    left_out: dict[str, list[str]]
    """The first pairs that were not labeled, with their reasons, by the code of the reason."""

    @property
    def text_tower(self) -> str:
        """Fingerprint of the text tower that the text embeddings come from."""
        return self.settings["text_tower"]

    def write(self, labels_file: Path) -> None:
        """Write the ledger beside its labels file, which must be complete."""
        content = {
            "shard": {"file": self.shard, "samples": self.counts.pairs, "sha256": self.shard_sha256},
            "settings": self.settings,
            "labels": {"file": labels_file.name, "sha256": self.labels_sha256},
            "counts": asdict(self.counts),
            "left_out": self.left_out,
        }
        write_json(ledger_path(labels_file), content)


def ledger_path(labels_file: Path) -> Path:
    """Return the path of a labels file's ledger."""
    return labels_file.with_suffix(".json")


def read_ledger(labels_file: Path) -> Ledger:
    """Read the ledger of a labels file.

    Raises:
        ValueError: the ledger is missing, or is not one of `ovd label-pairs`.
    """
    path = ledger_path(labels_file)
    try:
        content = json.loads(path.read_bytes())
        ledger = Ledger(
            shard=content["shard"]["file"],
            shard_sha256=content["shard"]["sha256"],
            labels_sha256=content["labels"]["sha256"],
            settings=dict(content["settings"]),
            counts=LabelCounts(**content["counts"]),
            left_out=content.get("left_out", {}),  # earlier versions did not name them
        )
        if not isinstance(ledger.text_tower, str):
            raise TypeError(f"text_tower is {ledger.text_tower!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a valid ledger of pseudo-labels ({error!r}); delete it and run ovd label-pairs again, "
            "or give another --output"
        ) from None
    return ledger


def labels_fingerprint(files: Sequence[Path]) -> str:
    """Return a hash of the ledgers, which cover the shards, the settings and the labels with their text embeddings."""
    ledgers = (ledger_path(file).read_bytes() for file in files)
    return hashlib.sha256(b"".join(hashlib.sha256(ledger).digest() for ledger in ledgers)).hexdigest()[:16]


def describe_capped(files: Sequence[Path]) -> str:
    """Describe in a sentence how many pairs had more boxes than their labels contain; empty if none had.

    Raises:
        ValueError: as `read_ledger`.
    """
    counts = total_counts([read_ledger(file).counts for file in files])
    if counts.capped_pairs == 0:
        return ""
    return (
        f"{counts.capped_pairs:,} of {format_count(counts.pairs, 'pair')} had more boxes than are stored "
        "(ovd label-pairs --max-boxes), so filters do not see all of them"
    )


def check_labels(files: Sequence[Path]) -> None:
    """Check that labels files match the hashes in their ledgers; all bytes are read, in threads.

    Raises:
        ValueError: a file does not match its ledger, or has none.
    """

    def is_whole(file: Path) -> bool:
        try:
            return read_ledger(file).labels_sha256 == sha256_of(file)
        except (OSError, ValueError):
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        checked = zip(files, pool.map(is_whole, files), strict=True)
        for file, whole in progress(checked, len(files), "checking labels"):
            if not whole:
                raise ValueError(
                    f"{file} does not match its ledger; delete both and label this shard again (ovd label-pairs)"
                )


def open_labeled_shards(folder: Path, files: Sequence[Path], *, text_tower: str | None = None) -> PairShards:
    """Open the labeled shards without scanning them, with the index that is stored with the labels.

    Args:
        folder: folder of the shards.
        files: the label files (`label_files`).
        text_tower: fingerprint that the labels' text tower must have; None for any.

    Raises:
        ValueError: a labels file has no ledger, so it may be incomplete; or the folder's manifest lists a different
            shard of the same name; or the files were made with different settings, or with another text tower.
        DataError: F13 a shard has another size than when it was labeled.
    """
    listed = list_shards(folder)
    common: dict[str, Any] | None = None
    for file in files:
        ledger = read_ledger(file)
        settings = ledger.settings
        expected = listed.get(ledger.shard)
        if expected is not None and expected.sha256 != ledger.shard_sha256:
            raise ValueError(f"{file} was made from another version of {ledger.shard}; label it again")
        if text_tower not in (None, ledger.text_tower):
            raise ValueError(
                f"{file} was made with a different text tower than the student's; label with a run of the same CLIP "
                "model (ovd label-pairs)"
            )
        common = common or settings
        different = [key for key in sorted(common.keys() | settings.keys()) if common.get(key) != settings.get(key)]
        if different:
            raise ValueError(
                f"{file} was made with different settings than {files[0].name} ({', '.join(different)}); delete the "
                "files that do not match the others, and run ovd label-pairs again"
            )
    indexes = {shard_name(file): read_shard_index(file) for file in files}
    shards = PairShards(folder, only=indexes, known=indexes, listed=listed)
    assert shards.file_names == tuple(indexes), "give the files as label_files does"
    return shards
