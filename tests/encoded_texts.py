"""Texts as the text tower embeds them."""

from torch import Tensor

from ovd.clip.load import Clip
from ovd.text.encoder import encode_tokens


def encode_texts(clip: Clip, texts: list[str]) -> Tensor:
    """One unit row each, float32, on the CPU."""
    return encode_tokens(clip, clip.tokenizer(texts))
