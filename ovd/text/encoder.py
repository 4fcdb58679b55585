"""Encoding of strings to unit embeddings by the frozen text tower, before training or detection."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.precision import autocast
from ovd.progress import progress
from ovd.text.names import build_prompts, warn_of_equal_tokens

BATCH = 256

_functional_call_lock = Lock()
"""Lock around `functional_call`, which replaces the text tower's tensors by shortened ones for all threads."""


@contextmanager
def text_tower_on(clip: Clip, device: torch.device) -> Iterator[None]:
    """Move the text tower to a device within a context, and to the CPU at its end; the backbone is not moved."""
    _move_text_side(clip, device)
    try:
        yield
    finally:
        _move_text_side(clip, torch.device("cpu"))


def _move_text_side(clip: Clip, device: torch.device) -> None:
    backbone = clip.model.visual
    clip.model.visual = nn.Identity()
    try:
        clip.model.to(device)
    finally:
        clip.model.visual = backbone


@torch.no_grad()
def encode_tokens(clip: Clip, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
    """Encode tokens to unit embeddings, float32, on the CPU.

    Padding after a batch's longest text is cut if the text tower does not attend to it: prompts with class names fill a
    sixth of CLIP's context or less, and take correspondingly less time.
    """
    text_side, device = TextSide(clip.model), clip.model.logit_scale.device
    rows = []
    for batch in tokens.split(BATCH):
        used = batch.any(dim=0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        with _functional_call_lock, autocast(device, False):  # rows outlive a caller's autocast
            shortened = shortened_tensors(clip, length)
            batch = batch[:, :length] if shortened else batch
            rows.append(functional_call(text_side, shortened, batch.to(device)).float().cpu())
    return torch.cat(rows)


class TextSide(nn.Module):
    """A wrapper around a CLIP model whose `forward` is the model's normalized `encode_text`."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        return self.model.encode_text(tokens, normalize=True)


def shortened_tensors(clip: Clip, length: int) -> dict[str, Tensor]:
    """Return the text tower's per-position tensors, cut to the first `length` positions, by parameter of `TextSide`.

    The result is empty if an embedding depends on the positions after its text: without causal attention, or if it is
    not read at the end of the text.
    """
    text_tower = getattr(clip.model, "text", clip.model)
    mask = getattr(text_tower, "attn_mask", None)
    pooling = getattr(text_tower, "text_pool_type", getattr(text_tower, "pool_type", None))
    if mask is None or pooling not in ("argmax", "eos") or getattr(text_tower, "cls_emb", None) is not None:
        return {}
    prefix = "model." if text_tower is clip.model else "model.text."
    return {
        f"{prefix}positional_embedding": text_tower.positional_embedding[:length],
        f"{prefix}attn_mask": mask[:length, :length],
    }


def encode_classes(
    clip: Clip,
    names: Sequence[str],
    templates: tuple[str, ...],
    synonyms: Sequence[Sequence[str]] | None = None,
    num_synonyms: int = 0,
) -> Float[Tensor, "C D"]:
    """Encode one unit row per class: the normalized mean over the templates, as in CLIP's evaluation.

    Args:
        synonyms: synonyms of each class, of which up to `num_synonyms` are used like its name.
    """
    synonyms = [()] * len(names) if synonyms is None else synonyms
    pairs = zip(names, synonyms, strict=True)
    texts = [build_prompts(name, others, num_synonyms, templates) for name, others in pairs]
    classes_at_a_time = max(1, BATCH // ((1 + num_synonyms) * len(templates)))
    starts = range(0, len(names), classes_at_a_time)
    means, tokens_of = [torch.empty(0, clip.dim, dtype=torch.float32)], []
    for start in progress(starts, len(starts), "class texts"):
        group = texts[start : start + classes_at_a_time]
        tokens = clip.tokenizer([text for of_class in group for text in of_class])
        tokens_of += [of_class.numpy().tobytes() for of_class in tokens.view(len(group), -1)]
        rows = encode_tokens(clip, tokens)
        means.append(F.normalize(rows.view(len(group), -1, rows.shape[1]).mean(dim=1), dim=-1))
    warn_of_equal_tokens(names, tokens_of)
    return torch.cat(means)


def text_tower_fingerprint(clip: Clip) -> str:
    """Return a SHA-256 hash that identifies the text tower.

    It covers the weights of the CLIP model without its backbone, the kind of GELU, and the tokens of a sample text.
    Hyperparameters that the weights do not show, such as the number of heads, are not covered.
    """
    digest = hashlib.sha256()
    modules = clip.model.named_modules()
    if any(isinstance(module, QuickGELU) for name, module in modules if not name.startswith("visual")):
        digest.update(b"quick_gelu")  # it has no weights to hash
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
    digest.update(repr(clip.tokenizer(["a photo of an umbrella_stand, 2 anchors"]).tolist()).encode())
    return digest.hexdigest()
