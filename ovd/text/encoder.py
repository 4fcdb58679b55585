"""The frozen text tower: strings to unit embeddings. Never on the training device, never in an optimizer."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.text.prompts import class_forms, fill

BATCH = 256


@torch.no_grad()
def encode_tokens(clip: Clip, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
    """Unit embeddings, float32, on the CPU."""
    rows = [clip.model.encode_text(batch, normalize=True).float() for batch in tokens.split(BATCH)]
    return torch.cat(rows)


def encode_texts(clip: Clip, texts: list[str]) -> Float[Tensor, "N D"]:
    """Unit embeddings, float32, on the CPU."""
    if not texts:
        return encode_texts(clip, [""])[:0]
    return encode_tokens(clip, clip.tokenizer(texts))


def encode_classes(
    clip: Clip,
    names: Sequence[str],
    templates: tuple[str, ...],
    synonyms: Sequence[Sequence[str]] | None = None,
    num_synonyms: int = 0,
) -> Float[Tensor, "C D"]:
    """One unit row per class: the renormalised mean over the templates, as CLIP is evaluated.

    Args:
        synonyms: of each class; `num_synonyms` of them count like its name.
    """
    synonyms = [()] * len(names) if synonyms is None else synonyms
    forms = [class_forms(name, others, num_synonyms) for name, others in zip(names, synonyms, strict=True)]
    texts = [fill(template, form) for of_class in forms for form in of_class for template in templates]
    embeddings = encode_texts(clip, texts)
    by_class = embeddings.view(len(names), (1 + num_synonyms) * len(templates), embeddings.shape[-1])
    return F.normalize(by_class.mean(1), dim=-1)


def text_tower_fingerprint(clip: Clip) -> str:
    """Hash of everything but the image tower, and of the tokenizer: what an embedding of a text depends on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.float().numpy().tobytes())
    digest.update(repr(clip.tokenizer(["a photo of an umbrella_stand, 2 anchors"]).tolist()).encode())
    return digest.hexdigest()
