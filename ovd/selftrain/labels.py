"""What a teacher found in one shard of image-text pairs, and the file that holds it.

Nothing is decided here: every box above a low score is kept, with the text it answers to, so that filters
(filter.py) can be changed without asking the teacher again.
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
from ovd.data.pairs import PairShards, list_shards
from ovd.data.shard_index import ShardIndex
from ovd.files import whole_file
from ovd.text.tensor_file import file_header

FORMAT = "labels of a shard of image-text pairs, 2"

# The safetensors package refuses to read a longer one.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TeacherBoxes:
    """What a teacher finds in one image: K boxes, best first."""

    boxes: Float32[np.ndarray, "K 4"]
    """xyxy in pixels of the image."""
    scores: Float32[np.ndarray, " K"]
    texts: Int64[np.ndarray, " K"]
    """Position in the list of texts that was asked for in this image."""


@dataclass(frozen=True)
class ShardLabels:
    """The labels of a shard's N pairs, in its order, and its Q distinct texts, in the order of first use."""

    keys: tuple[str, ...]
    reasons: tuple[str, ...]
    """Empty for a pair that the teacher looked at; else "CODE why" it was not."""
    image_sizes: Int64[np.ndarray, "N 2"]
    """Height and width in pixels; 0 where the image could not be read."""
    texts: tuple[str, ...]
    queries: Ragged
    """Rows of `texts` that were asked for in each pair's image."""
    boxes: Ragged
    """xyxy in pixels of the pair's image, float32, best first."""
    scores: Ragged
    """float32."""
    box_texts: Ragged
    """Row of `texts` that each box answers to."""


def write_labels(
    path: Path,
    labels: ShardLabels,
    *,
    index: ShardIndex,
    variants: Float16[np.ndarray, "Q V D"],
    text_tower: str,
    settings: dict[str, Any],
) -> str:
    """Writes a shard's labels and its texts' embeddings as one safetensors file; its bytes depend on these alone.

    `TextBank` opens the same file: its classes are the texts.

    Args:
        index: of the shard, so that who trains on the labels need not read through it again.
        variants: V unit rows for each of the Q texts.
        text_tower: fingerprint of the text tower that they come from.
        settings: whatever else the labels depend on, JSON-able.

    Returns:
        The file's SHA-256.

    Raises:
        ValueError: the shard has more text than such a file can hold.
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
        "names": json.dumps(labels.texts),
        "keys": json.dumps(labels.keys),
        "reasons": json.dumps(labels.reasons),
        "shard_bytes": str(index.num_bytes),
        "settings": json.dumps(settings, sort_keys=True),
    }
    header = file_header({name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata)
    if len(header) > _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: {len(labels.texts)} texts take {len(header)} bytes; make shards of fewer pairs")
    digest = hashlib.sha256()
    with whole_file(path, "wb") as file:
        for part in (header, *(array.tobytes() for array in arrays.values())):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def read_labels(path: Path) -> ShardLabels:
    """
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
    """Where the pairs lie in the shard that a labels file is about.

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
    """An open labels file and its metadata; what goes wrong with it is one kind of error."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            yield file, metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole file of pseudo-labels ({error}); remove it and run tools/pseudo_label.py again"
        ) from None


def label_files(folder: Path) -> list[Path]:
    """The labels in a folder, in the order of their shards.

    Raises:
        ValueError: there are none.
    """
    files = sorted(folder.glob("*.safetensors"), key=_shard_name)
    if not files:
        raise ValueError(f"{folder} has no labels (*.safetensors); make them with tools/pseudo_label.py")
    return files


def _shard_name(file: Path) -> str:
    return f"{file.stem}.tar"


def labels_fingerprint(files: Sequence[Path]) -> str:
    """Hash of the ledgers: of the shards, what they were labelled with and what was found, text embeddings included."""
    ledgers = (_ledger_path(file).read_bytes() for file in files)
    return hashlib.sha256(b"".join(hashlib.sha256(ledger).digest() for ledger in ledgers)).hexdigest()[:16]


def _ledger_path(file: Path) -> Path:
    return file.with_suffix(".json")


def open_labelled_shards(folder: Path, files: Sequence[Path], *, text_tower: str | None = None) -> PairShards:
    """The shards that labels were made of, by the index that is kept with the labels: none is read through again.

    Args:
        folder: of the shards.
        files: the labels (`label_files`).
        text_tower: fingerprint of the text tower that their text embeddings must come from.

    Raises:
        ValueError: a labels file has no ledger, so that it may not be whole; or the manifest of the folder tells of
            another shard of that name; or the files were made with different settings, or another text tower.
        DataError: F13 a shard has another size than the one that was labelled.
    """
    listed = list_shards(folder)
    common: dict[str, Any] | None = None
    for file in files:
        ledger = _ledger_path(file)
        try:
            content = json.loads(ledger.read_bytes())
            name, sha256 = content["shard"]["file"], content["shard"]["sha256"]
            settings = dict(content["settings"])
            text_tower_of_file = settings["text_tower"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{ledger} cannot be read ({error!r}); run tools/pseudo_label.py again, it makes what is missing"
            ) from None
        expected = listed.get(name)
        if expected is not None and expected.sha256 != sha256:
            raise ValueError(f"{file} was made of another {name} than the one that is there now: label that one")
        if text_tower not in (None, text_tower_of_file):
            raise ValueError(
                f"{file} was made with another text tower than the student has; label with a run of the same CLIP "
                "(tools/pseudo_label.py)"
            )
        common = common or settings
        different = [key for key in sorted(common.keys() | settings.keys()) if common.get(key) != settings.get(key)]
        if different:
            raise ValueError(
                f"{file} was made otherwise than {files[0].name} ({', '.join(different)}); remove what does not belong "
                "to the others and run tools/pseudo_label.py again"
            )
    indexes = {_shard_name(file): read_shard_index(file) for file in files}
    shards = PairShards(folder, only=indexes, known=indexes)
    assert shards.file_names == tuple(indexes), "give the files as label_files does"
    return shards
