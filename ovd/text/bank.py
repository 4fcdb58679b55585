"""The text bank: V variants of every class on disk, of which a training step reads the few rows it needs.

The first of the "three ways" (arXiv:2303.13518): variants of the text embeddings keep the detector from overfitting
to few training classes, and, being precomputed, leave the text tower out of training altogether.

One safetensors file per bank, C x V x D float16 unit rows, read by position (pread): a mapped file was seen to grow
the process by hundreds of MB in one step.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.text.encoder import encode_texts, text_tower_fingerprint
from ovd.text.prompts import clean_name, fill

FORMAT_VERSION = 1


class TextBank:
    """Rows of a bank file by (class, variant)."""

    def __init__(self, path: Path):
        """
        Raises:
            ValueError: the file is not a bank, or shorter than its header says.
        """
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        try:
            header_bytes = int.from_bytes(os.pread(self._file, 8, 0), "little")
            header = json.loads(os.pread(self._file, header_bytes, 8))
            tensor, metadata = header["variants"], header["__metadata__"]
            self.num_classes, self.num_variants, self.dim = tensor["shape"]
            start, end = tensor["data_offsets"]
        except (ValueError, KeyError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is not a text bank ({error}); delete it to have it built again") from None
        self.tower: str = metadata["tower"]
        """Fingerprint of the text tower that the rows come from."""
        self._data_start = 8 + header_bytes + start
        if tensor["dtype"] != "F16" or os.fstat(self._file).st_size < 8 + header_bytes + end:
            raise ValueError(f"{path} is a damaged text bank; delete it to have it built again")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def rows(self, classes: Int[np.ndarray, " K"], variants: Int[np.ndarray, " K"]) -> Float[Tensor, "K D"]:
        """Unit rows, float32."""
        row_bytes = 2 * self.dim
        gathered = np.empty((len(classes), self.dim), np.float16)
        for index, (row, variant) in enumerate(zip(classes.tolist(), variants.tolist(), strict=True)):
            position = self._data_start + (row * self.num_variants + variant) * row_bytes
            gathered[index] = np.frombuffer(os.pread(self._file, row_bytes, position), np.float16)
        return F.normalize(torch.from_numpy(gathered).float(), dim=-1)

    def sample(
        self, classes: Int[Tensor, " K"], *, generator: torch.Generator, noise: float = 0.0
    ) -> Float[Tensor, "K D"]:
        """One variant of every class asked for, drawn uniformly; with `noise`, a Gaussian of that length on top."""
        variants = torch.randint(self.num_variants, (len(classes),), generator=generator)
        rows = self.rows(classes.cpu().numpy(), variants.numpy())
        if noise:
            rows = F.normalize(rows + noise * self.dim**-0.5 * torch.randn(rows.shape, generator=generator), dim=-1)
        return rows


def build_bank(
    clip: Clip,
    names: list[str],
    synonyms: list[tuple[str, ...]],
    templates: tuple[str, ...],
    *,
    num_synonyms: int,
    folder: Path,
) -> TextBank:
    """Encode every class's variants, or open the bank that an earlier call with the same inputs wrote.

    Variants are the templates, filled with the class's name and with up to `num_synonyms` of its synonyms. A class with
    fewer synonyms repeats its name, so that every class has the same number of variants.
    """
    tower = text_tower_fingerprint(clip)
    texts = []
    for name, others in zip(names, synonyms, strict=True):
        # LVIS's synonyms begin with the name itself.
        forms = list(dict.fromkeys(clean_name(form) for form in (name, *others)))[: 1 + num_synonyms]
        forms = [forms[index % len(forms)] for index in range(1 + num_synonyms)]
        texts += [fill(template, form) for form in forms for template in templates]
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, tower, names, texts]).encode()).hexdigest()[:16]
    path = folder / f"{key}.safetensors"
    if not path.exists():
        embeddings = encode_texts(clip, texts)
        variants = embeddings.view(len(names), len(templates) * (1 + num_synonyms), embeddings.shape[-1])
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"variants": variants.half()}, temporary, metadata={"tower": tower})
        temporary.replace(path)
    return TextBank(path)
