"""Embeddings of texts by the text tower."""

from torch import Tensor

from ovd.clip.load import Clip
from ovd.text.encoder import encode_tokens


def encode_texts(clip: Clip, texts: list[str]) -> Tensor:
    """Encode each text as one row of unit length, float32, on the CPU."""
    return encode_tokens(clip, clip.tokenizer(texts))
