"""The frozen text tower: strings to unit embeddings. Never on the training device, never in an optimizer."""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.text.prompts import clean_name, fill

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


def encode_classes(clip: Clip, names: list[str], templates: tuple[str, ...]) -> Float[Tensor, "C D"]:
    """One unit row per class: the renormalised mean over the templates, as CLIP is evaluated."""
    texts = [fill(template, clean_name(name)) for name in names for template in templates]
    embeddings = encode_texts(clip, texts)
    return F.normalize(embeddings.view(len(names), len(templates), embeddings.shape[-1]).mean(1), dim=-1)


def text_tower_fingerprint(clip: Clip) -> str:
    """Hash of everything but the image tower, and of the tokenizer: what an embedding of a text depends on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.float().numpy().tobytes())
    digest.update(repr(clip.tokenizer(["a photo of an umbrella_stand, 2 anchors"]).tolist()).encode())
    return digest.hexdigest()
