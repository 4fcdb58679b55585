"""The text bank: V text embeddings of every class on disk, of which a training step reads only the rows it needs.

This is the first of the "three ways" (arXiv:2303.13518): variants of the text embeddings keep the detector from
overfitting to few training classes. Since they are precomputed, training does not run the text tower.

A bank is one safetensors file of C x V x D float16 unit rows. Rows are read with `os.pread`, not from a memory-mapped
file, with which the process grew by hundreds of MB in one step.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.files import atomic_write, make_folder, remove_stale_temporaries
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.progress import progress
from ovd.text.encoder import BATCH, encode_tokens, text_tower_fingerprint
from ovd.text.names import build_prompts
from ovd.text.perturb import drop_tokens, tower_dropout
from ovd.text.prompts import TEMPLATES
from ovd.text.sources import TextSources
from ovd.text.tensor_file import file_header

FORMAT_VERSION = 4


@dataclass(frozen=True)
class VariantRows:
    """Location of the rows in a file that holds V variants of each text, in D dimensions."""

    path: Path
    num_variants: int
    dim: int
    start: int
    """Byte offset of the first row."""

    def read(self, texts: Int[np.ndarray, " K"], variants: Int[np.ndarray, " K"]) -> Float[Tensor, "K D"]:
        """Read unit rows as float32.

        Args:
            texts: position in the file of the text of each row.
            variants: variant of each row.

        Raises:
            ValueError: the file has become shorter.
        """
        row_bytes = 2 * self.dim
        offsets = self.start + (texts.astype(np.int64) * self.num_variants + variants) * row_bytes
        # Opened for each call, since the label files of a large set would exceed the limit on open files.
        file = os.open(self.path, os.O_RDONLY)
        try:
            content = bytearray().join(os.pread(file, row_bytes, offset) for offset in offsets.tolist())
        finally:
            os.close(file)
        if len(content) < row_bytes * len(offsets):
            raise ValueError(f"{self.path} is too short; it was changed or cut after it was opened")
        gathered = torch.from_numpy(np.frombuffer(content, np.float16)).view(-1, self.dim)
        return F.normalize(gathered.float(), dim=-1)


class TextBank:
    """The rows of a bank file, addressed by class and variant."""

    def __init__(self, path: Path, *, text_tower: str | None = None, names: Sequence[str] | None = None):
        """
        Args:
            path: a file from `build_bank`, or any safetensors file with such a tensor and metadata.
            text_tower: required fingerprint of the text tower that the rows come from; by default any.
            names: the classes to read, in this order; by default all classes of the file, in its order.

        Raises:
            ValueError: the file is not a bank, has duplicate class names, is shorter than its header declares, comes
                from another text tower, or lacks a class.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                header_bytes = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_bytes) if header_bytes <= size else b"")
            tensor, metadata = header["variants"], header["__metadata__"]
            num_rows, num_variants, dim = tensor["shape"]
            in_file = json.loads(metadata["names"])
            position = {name: row for row, name in enumerate(in_file)}
            if not num_rows == len(in_file) == len(position):
                raise ValueError(f"classes: {num_rows:,}, names: {len(in_file):,}, distinct: {len(position):,}")
            start, end = tensor["data_offsets"]
            is_whole = tensor["dtype"] == "F16" and end - start == 2 * num_rows * num_variants * dim
            self.text_tower: str = metadata["tower"]
            """Fingerprint of the text tower that the rows come from."""
        except OSError as error:
            raise ValueError(f"the text bank {path} cannot be read ({error.strerror}); check bank.file") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is not a text bank ({error}); delete it, and it is built again") from None
        if text_tower not in (None, self.text_tower):
            raise ValueError(f"{path} was made with a different text tower; build it again with ovd text-bank")
        missing = [name for name in names or () if name not in position]
        if missing:
            raise ValueError(
                f"{path} lacks {format_count(len(missing), 'class', 'classes')} ({join_first(missing, 5)}); "
                "build a bank with them (ovd text-bank)"
            )
        self.names = tuple(position if names is None else names)
        self._positions = np.array([position[name] for name in self.names], np.int64)
        self.variants = VariantRows(path, num_variants, dim, 8 + header_bytes + start)
        if not is_whole or size < 8 + header_bytes + end:
            raise ValueError(f"{path} is a damaged text bank; delete it, and it is built again")

    def rows(self, classes: Int[np.ndarray, " K"], variants: Int[np.ndarray, " K"]) -> Float[Tensor, "K D"]:
        """Read the unit row of each class and variant as float32."""
        return self.variants.read(self._positions[classes], variants)

    def sample(
        self, classes: Int[Tensor, " K"], *, generator: torch.Generator, noise: float = 0.0
    ) -> Float[Tensor, "K D"]:
        """Draw one variant per class uniformly; with `noise`, add Gaussian noise of about that length."""
        variants = torch.randint(self.variants.num_variants, (len(classes),), generator=generator)
        return add_noise(self.rows(classes.cpu().numpy(), variants.numpy()), noise, generator)


def add_noise(rows: Float[Tensor, "K D"], noise: float, generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Add Gaussian noise of about length `noise` to unit rows and normalize them again."""
    if noise == 0:
        return rows
    return F.normalize(rows + noise * rows.shape[1] ** -0.5 * torch.randn(rows.shape, generator=generator), dim=-1)


def class_texts(
    name: str, synonyms: Sequence[str], paraphrases: Sequence[str], sources: TextSources, num_paraphrases: int
) -> list[str]:
    """Return the texts of a class, the same number for every class.

    A class with fewer synonyms repeats its names; one with fewer paraphrases repeats its prompts.

    Args:
        paraphrases: whole texts about the class; each is one variant, without a template.
        num_paraphrases: the largest number of paraphrases of any class.
    """
    texts = build_prompts(name, synonyms, sources.num_synonyms, TEMPLATES[sources.templates])
    return (
        texts + list(paraphrases) + [texts[index % len(texts)] for index in range(num_paraphrases - len(paraphrases))]
    )


def build_bank(
    clip: Clip,
    names: Sequence[str],
    synonyms: Sequence[Sequence[str]],
    sources: TextSources,
    *,
    folder: Path,
    paraphrases: Sequence[Sequence[str]] | None = None,
) -> TextBank:
    """Encode the variants of every class, or open the bank that an earlier call with the same inputs wrote.

    The file is written in groups of classes, so that a bank may be larger than memory, and is renamed when it is
    complete.

    Args:
        names, synonyms, paraphrases: one entry per class, in the same order; by default no paraphrases.

    Raises:
        ValueError: a class is given twice, or the folder cannot be made or written to.
    """
    text_tower = text_tower_fingerprint(clip)
    paraphrases = paraphrases or [()] * len(names)
    num_paraphrases = max(map(len, paraphrases), default=0)
    per_class = zip(names, synonyms, paraphrases, strict=True)
    texts = [class_texts(*of_class, sources, num_paraphrases) for of_class in per_class]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"a text bank needs every class once, but {twice!r} occurs more than once")
    random = {name: getattr(sources, name) for name in ("draws", "token_drop", "tower_dropout", "seed")}
    if sources.draws == 1:
        random["seed"] = 0  # nothing is random, so that every seed gives the same bank
    description = [FORMAT_VERSION, text_tower, names, texts, random]
    path = folder / f"{hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        make_folder(folder, f"{folder}, the folder of text banks,", "; give another bank.cache")
        remove_stale_temporaries(folder)
        with atomic_write(path, "wb") as file:
            _write(file, clip, {"tower": text_tower, "names": json.dumps(names)}, texts, sources)
    return TextBank(path)


def _write(file: IO[bytes], clip: Clip, metadata: dict[str, str], texts: list[list[str]], sources: TextSources) -> None:
    """Write a safetensors file of one C x V x D float16 tensor, where V is texts x draws in that order."""
    per_class = len(texts[0]) * sources.draws if texts else 0
    classes_at_a_time = max(1, BATCH // max(1, per_class))
    starts = range(0, len(texts), classes_at_a_time)
    generator = torch.Generator().manual_seed(sources.seed)
    file.write(file_header({"variants": (np.dtype(np.float16), (len(texts), per_class, clip.dim))}, metadata))
    for start in progress(starts, len(starts), "text bank"):
        group = texts[start : start + classes_at_a_time]
        tokens = clip.tokenizer([text for of_class in group for text in of_class])
        draws = [encode_tokens(clip, tokens)]
        for _ in range(1, sources.draws):
            kept = drop_tokens(tokens, clip, sources.token_drop, generator) if sources.token_drop else tokens
            with tower_dropout(clip, sources.tower_dropout, generator):
                draws.append(encode_tokens(clip, kept))
        variants = torch.stack(draws, dim=1).reshape(len(group), per_class, clip.dim)
        file.write(variants.half().numpy().tobytes())
