"""A teacher's labels of one shard of image-text pairs, and their file.

The boxes above a low score are stored, with their texts, so that the filters (filter.py) can be changed without another
run of the teacher. Where an image has more than a maximum, its pair is counted as capped in the ledger.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64
from safetensors import SafetensorError, safe_open

from ovd.data.index import Ragged
from ovd.data.pairs.shard_index import ShardIndex
from ovd.data.pairs.tar import PairShards, list_shards
from ovd.files import sha256_of, whole_file
from ovd.progress import progress
from ovd.text.tensor_file import file_header

FORMAT = "labels of a shard of image-text pairs, 2"

# The safetensors package does not read longer headers.
_MAX_HEADER_BYTES = 100_000_000
_OTHER_HEADER_BYTES = 100_000  # left free for settings, shapes, and why images could not be read
_THREADS = 4


@dataclass(frozen=True)
class TeacherBoxes:
    """A teacher's K boxes in one image, best first."""

    boxes: Float32[np.ndarray, "K 4"]
    """xyxy in pixels of the image."""
    scores: Float32[np.ndarray, " K"]
    texts: Int64[np.ndarray, " K"]
    """Position of each box's text in the image's queries."""


@dataclass(frozen=True)
class ShardLabels:
    """The labels of a shard's N pairs, in its order, and its Q distinct texts, in the order of first use."""

    keys: tuple[str, ...]
    reasons: tuple[str, ...]
    """Empty for a pair that was given to the teacher; else "CODE why" it was not."""
    image_sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels; 0 where the image could not be read."""
    texts: tuple[str, ...]
    queries: Ragged
    """Queries of each pair: rows of `texts`."""
    boxes: Ragged
    """xyxy in pixels of the pair's image, float32, best first."""
    scores: Ragged
    """Scores of the boxes, float32."""
    box_texts: Ragged
    """Row of `texts` of each box."""


def write_labels(
    path: Path,
    labels: ShardLabels,
    *,
    index: ShardIndex,
    variants: Float16[np.ndarray, "Q V D"],
    text_tower: str,
    settings: dict[str, Any],
) -> str:
    """Write a shard's labels and its texts' embeddings as one safetensors file; its bytes depend on these alone.

    `TextBank` opens the same file: its classes are the texts.

    Args:
        index: index of the shard, stored so that training on the labels need not scan the shard.
        variants: V unit rows for each of the Q texts.
        text_tower: fingerprint of the text tower that they come from.
        settings: all settings that the labels depend on, JSON-able.

    Returns:
        The file's SHA-256.

    Raises:
        ValueError: the shard has too much text for the file's header.
    """
    arrays = {
        "image_sizes": labels.image_sizes,
        "query_offsets": labels.queries.offsets,
        "box_offsets": labels.boxes.offsets,
        "queries": labels.queries.values.astype(np.int32),
        "box_texts": labels.box_texts.values.astype(np.int32),
        "boxes": labels.boxes.values,
        "scores": labels.scores.values,
        "member_offsets": index.offsets,
        "member_sizes": index.sizes,
        "variants": variants,
    }
    metadata = {
        "format": FORMAT,
        "tower": text_tower,
        **_text_metadata(labels.keys, labels.reasons, labels.texts),
        "shard_bytes": str(index.num_bytes),
        "settings": json.dumps(settings, sort_keys=True),
    }
    header = file_header({name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata)
    _check_header(path, len(header), len(labels.texts))
    digest = hashlib.sha256()
    with whole_file(path, "wb") as file:
        for part in (header, *(array.tobytes() for array in arrays.values())):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def check_room(path: Path, *, keys: Sequence[str], reasons: Sequence[str], texts: Sequence[str]) -> None:
    """Check, before a teacher works on a shard, that its labels file has room for its text.

    Args:
        path: the file that `write_labels` will write.
        reasons: those that are known before images are read.

    Raises:
        ValueError: the shard has too much text for the file's header.
    """
    num_bytes = len(file_header({}, _text_metadata(keys, reasons, texts))) + _OTHER_HEADER_BYTES
    _check_header(path, num_bytes, len(texts))


def _text_metadata(keys: Sequence[str], reasons: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    content = {"names": texts, "keys": keys, "reasons": reasons}
    return {name: json.dumps(of_shard, ensure_ascii=False) for name, of_shard in content.items()}


def _check_header(path: Path, num_bytes: int, num_texts: int) -> None:
    if num_bytes > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{path}: {num_texts:,} texts and the keys of the pairs take {num_bytes:,} bytes, and its header holds "
            f"{_MAX_HEADER_BYTES:,}; make shards of fewer pairs"
        )


def read_labels(path: Path) -> ShardLabels:
    """Read the labels of a shard.

    Raises:
        ValueError: not a whole file of `write_labels`.
    """
    with _reading(path) as (file, metadata):
        keys, reasons, texts = (tuple(json.loads(metadata[name])) for name in ("keys", "reasons", "names"))
        box_offsets = file.get_tensor("box_offsets")
        return ShardLabels(
            keys=keys,
            reasons=reasons,
            image_sizes=file.get_tensor("image_sizes"),
            texts=texts,
            queries=Ragged(file.get_tensor("queries").astype(np.int64), file.get_tensor("query_offsets")),
            boxes=Ragged(file.get_tensor("boxes"), box_offsets),
            scores=Ragged(file.get_tensor("scores"), box_offsets),
            box_texts=Ragged(file.get_tensor("box_texts").astype(np.int64), box_offsets),
        )


def read_shard_index(path: Path) -> ShardIndex:
    """Read the positions of the pairs in a shard from its labels file.

    Raises:
        ValueError: not a whole file of `write_labels`.
    """
    with _reading(path) as (file, metadata):
        return ShardIndex(
            keys=np.array([key.encode() for key in json.loads(metadata["keys"])], np.bytes_),
            offsets=file.get_tensor("member_offsets"),
            sizes=file.get_tensor("member_sizes"),
            num_bytes=int(metadata["shard_bytes"]),
        )


@contextmanager
def _reading(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open labels file and its metadata; every failure raises a ValueError."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            yield file, metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole file of pseudo-labels ({error}); remove it and run ovd label-pairs again"
        ) from None


def label_files(folder: Path) -> list[Path]:
    """The label files in a folder, in the order of their shards.

    Raises:
        ValueError: there are none.
    """
    files = sorted(folder.glob("*.safetensors"), key=_shard_name)
    if not files:
        raise ValueError(f"{folder} has no labels (*.safetensors); make them with ovd label-pairs")
    return files


def _shard_name(file: Path) -> str:
    return f"{file.stem}.tar"


def labels_fingerprint(files: Sequence[Path]) -> str:
    """Hash of the ledgers, which cover the shards, the settings and the labels with their text embeddings."""
    ledgers = (ledger_path(file).read_bytes() for file in files)
    return hashlib.sha256(b"".join(hashlib.sha256(ledger).digest() for ledger in ledgers)).hexdigest()[:16]


def labels_path(folder: Path, shard: str) -> Path:
    """The file of a shard's labels."""
    return folder / f"{Path(shard).stem}.safetensors"


def ledger_path(file: Path) -> Path:
    """The ledger beside a file of labels."""
    return file.with_suffix(".json")


@dataclass(frozen=True)
class Ledger:
    """What a ledger says of its file of labels."""

    shard: str
    """File name of the shard."""
    shard_sha256: str
    text_tower: str
    """Fingerprint of the text tower that the text embeddings come from."""
    settings: dict[str, Any]
    """All settings that the labels depend on."""
    counts: dict[str, Any]
    """Of pairs, boxes and texts."""


def read_ledger(file: Path) -> Ledger:
    """The ledger of a file of labels.

    Raises:
        ValueError: it is missing, or no ledger of `ovd label-pairs`.
    """
    path = ledger_path(file)
    try:
        content = json.loads(path.read_bytes())
        shard, settings = content["shard"], dict(content["settings"])
        return Ledger(shard["file"], shard["sha256"], settings["text_tower"], settings, content.get("counts", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); run ovd label-pairs again to label this shard") from None


def describe_capped(files: Sequence[Path]) -> str:
    """Of how many pairs the labels lack boxes, in a sentence; empty if they lack none.

    Raises:
        ValueError: as `read_ledger`.
    """
    counts = [read_ledger(file).counts for file in files]
    capped, pairs = (sum(of_shard.get(name, 0) for of_shard in counts) for name in ("capped_pairs", "pairs"))
    if capped == 0:
        return ""
    return (
        f"{capped:,} of {pairs:,} pairs had more boxes than their labels hold (ovd label-pairs --max-boxes), so that "
        "filters do not see all of them"
    )


def check_labels(files: Sequence[Path]) -> None:
    """Check that labels are those that their ledgers name: all bytes are read, in threads.

    Raises:
        ValueError: a file is damaged, or its ledger is missing or of another.
    """

    def is_whole(file: Path) -> bool:
        try:
            return json.loads(ledger_path(file).read_bytes())["labels"]["sha256"] == sha256_of(file)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        checked = zip(files, pool.map(is_whole, files), strict=True)
        for file, whole in progress(checked, len(files), "checking labels"):
            if not whole:
                raise ValueError(
                    f"{file} does not match its ledger; remove both and label this shard again (ovd label-pairs)"
                )


def open_labelled_shards(folder: Path, files: Sequence[Path], *, text_tower: str | None = None) -> PairShards:
    """Open the labelled shards by the index that is stored with the labels, without scanning them.

    Args:
        folder: folder of the shards.
        files: the labels (`label_files`).
        text_tower: required fingerprint of the text tower that the text embeddings come from.

    Raises:
        ValueError: a labels file has no ledger, so that it may be incomplete; or the folder's manifest lists another
            shard of that name; or the files were made with different settings, or another text tower.
        DataError: F13 a shard has another size than when it was labelled.
    """
    listed = list_shards(folder)
    common: dict[str, Any] | None = None
    for file in files:
        ledger = read_ledger(file)
        settings = ledger.settings
        expected = listed.get(ledger.shard)
        if expected is not None and expected.sha256 != ledger.shard_sha256:
            raise ValueError(f"{file} was made from another {ledger.shard} than the present one; label it again")
        if text_tower not in (None, ledger.text_tower):
            raise ValueError(
                f"{file} was made with another text tower than the student has; label with a run of the same CLIP "
                "(ovd label-pairs)"
            )
        common = common or settings
        different = [key for key in sorted(common.keys() | settings.keys()) if common.get(key) != settings.get(key)]
        if different:
            raise ValueError(
                f"{file} was made with other settings than {files[0].name} ({', '.join(different)}); remove the files "
                "that do not match the others and run ovd label-pairs again"
            )
    indexes = {_shard_name(file): read_shard_index(file) for file in files}
    shards = PairShards(folder, only=indexes, known=indexes, listed=listed)
    assert shards.file_names == tuple(indexes), "give the files as label_files does"
    return shards
