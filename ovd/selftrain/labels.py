"""A teacher's labels of one shard of image-text pairs, and their file.

All boxes above a low score are stored, with their texts, so that the filters (filter.py) can be changed without running
the teacher again. If an image has more than the maximum, its pair is counted as capped in the ledger (ledger.py).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64
from safetensors import SafetensorError, safe_open

from ovd.data.index import Ragged
from ovd.data.pairs.shard_index import ShardIndex
from ovd.fault import Fault
from ovd.files import atomic_write
from ovd.text.tensor_file import file_header

FORMAT = "labels of a shard of image-text pairs, 2"

# The safetensors package does not read longer headers.
_MAX_HEADER_BYTES = 100_000_000
_OTHER_HEADER_BYTES = 100_000  # reserved for settings, shapes, and the reasons of unreadable images


@dataclass(frozen=True)
class TeacherBoxes:
    """A teacher's K boxes in one image, best first."""

    boxes: Float32[np.ndarray, "K 4"]
    """Boxes, xyxy in pixels of the image."""
    scores: Float32[np.ndarray, " K"]
    texts: Int64[np.ndarray, " K"]
    """Position of each box's text in the image's queries."""


@dataclass(frozen=True)
class ShardLabels:
    """The labels of a shard's N pairs, in the shard's order, and its Q distinct texts, in the order of first use."""

    keys: tuple[str, ...]
    reasons: tuple[Fault | None, ...]
    """Reason why a pair was not given to the teacher; None if it was."""
    image_sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels; 0 if the image could not be read."""
    texts: tuple[str, ...]
    queries: Ragged
    """Queries of each pair, as rows of `texts`."""
    boxes: Ragged
    """Boxes of each pair, xyxy in pixels of its image, float32, best first."""
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
    """Write a shard's labels and its texts' embeddings as one safetensors file; the same arguments give the same bytes.

    `TextBank` can open the file; its classes are the texts.

    Args:
        index: index of the shard, stored so that training on the labels need not scan the shard.
        variants: V unit rows for each of the Q texts.
        text_tower: fingerprint of the text tower that encoded the texts.
        settings: all settings that the labels depend on, JSON-able.

    Returns:
        The SHA-256 of the file.

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
    with atomic_write(path, "wb") as file:
        for part in (header, *(array.tobytes() for array in arrays.values())):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def check_header_size(
    path: Path, *, keys: Sequence[str], reasons: Sequence[Fault | None], texts: Sequence[str]
) -> None:
    """Check, before a teacher works on a shard, that the labels file has room for the shard's text.

    Args:
        path: the file that `write_labels` will write.
        reasons: the reasons that are known before images are read.

    Raises:
        ValueError: the shard has too much text for the file's header.
    """
    num_bytes = len(file_header({}, _text_metadata(keys, reasons, texts))) + _OTHER_HEADER_BYTES
    _check_header(path, num_bytes, len(texts))


def _text_metadata(keys: Sequence[str], reasons: Sequence[Fault | None], texts: Sequence[str]) -> dict[str, str]:
    as_text = ["" if reason is None else str(reason) for reason in reasons]
    content = {"names": texts, "keys": keys, "reasons": as_text}
    return {name: json.dumps(of_shard, ensure_ascii=False) for name, of_shard in content.items()}


def _check_header(path: Path, num_bytes: int, num_texts: int) -> None:
    if num_bytes > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{path}: {num_texts:,} texts and the keys of the pairs take {num_bytes:,} bytes, but the header holds "
            f"{_MAX_HEADER_BYTES:,}; make shards with fewer pairs"
        )


def read_labels(path: Path) -> ShardLabels:
    """Read the labels of a shard.

    Raises:
        ValueError: the file is not a whole file of `write_labels`.
    """
    with _reading(path) as (file, metadata):
        keys, reasons, texts = (tuple(json.loads(metadata[name])) for name in ("keys", "reasons", "names"))
        box_offsets = file.get_tensor("box_offsets")
        return ShardLabels(
            keys=keys,
            reasons=tuple(Fault.read(reason) if reason else None for reason in reasons),
            image_sizes=file.get_tensor("image_sizes"),
            texts=texts,
            queries=Ragged(file.get_tensor("queries").astype(np.int64), file.get_tensor("query_offsets")),
            boxes=Ragged(file.get_tensor("boxes"), box_offsets),
            scores=Ragged(file.get_tensor("scores"), box_offsets),
            box_texts=Ragged(file.get_tensor("box_texts").astype(np.int64), box_offsets),
        )


def read_shard_index(path: Path) -> ShardIndex:
    """Read the index of a shard from its labels file.

    Raises:
        ValueError: the file is not a whole file of `write_labels`.
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
    """Open a labels file, with its metadata; every failure raises a ValueError."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            yield file, metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a valid file of pseudo-labels ({error}); delete it and run ovd label-pairs again"
        ) from None


def label_files(folder: Path) -> list[Path]:
    """List the label files of a folder, in the order of their shards.

    Raises:
        ValueError: the folder has no label files.
    """
    files = sorted(folder.glob("*.safetensors"), key=shard_name)
    if not files:
        raise ValueError(f"{folder} has no labels (*.safetensors); run ovd label-pairs first")
    return files


def shard_name(file: Path) -> str:
    """Return the file name of the shard that a labels file belongs to."""
    return f"{file.stem}.tar"


def labels_path(folder: Path, shard: str) -> Path:
    """Return the path of a shard's labels file."""
    return folder / f"{Path(shard).stem}.safetensors"
