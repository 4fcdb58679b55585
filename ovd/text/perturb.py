"""Random changes of text embeddings that stay on the text tower's manifold: dropped tokens, dropout in the tower."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovd.clip.load import Clip


def drop_tokens(
    tokens: Int[Tensor, "N L"], clip: Clip, probability: float, generator: torch.Generator
) -> Int[Tensor, "N L"]:
    """Drop each token of a text with this probability, except the start, the end, and at least one other token.

    Raises:
        ValueError: the tokenizer does not define start and end tokens (those of CLIP do).
    """
    try:
        start, end = clip.tokenizer.sot_token_id, clip.tokenizer.eot_token_id  # type: ignore[attr-defined]
    except AttributeError:
        raise ValueError(
            "bank.token_drop needs CLIP's own tokenizer, which this model does not have; set it to 0"
        ) from None
    content = (tokens != start) & (tokens != end) & ((tokens == end).cumsum(dim=1) == 0)
    luck = torch.rand(tokens.shape, generator=generator)
    luckiest = luck.masked_fill(~content, -1.0).argmax(dim=1, keepdim=True)
    dropped = content & (luck < probability)
    dropped.scatter_(1, luckiest, False)
    order = dropped.to(torch.uint8).argsort(dim=1, stable=True)  # kept tokens move to the left
    return tokens.gather(1, order).masked_fill(dropped.gather(1, order), 0)


@contextmanager
def tower_dropout(clip: Clip, probability: float, generator: torch.Generator) -> Iterator[None]:
    """Apply dropout to the outputs of the text tower's attention and MLP, before the residual sum, within a context.

    open_clip's text towers have no dropout of their own; forward hooks add it, and are removed at the end.

    Raises:
        ValueError: the text tower is not built of open_clip's residual blocks (for example one from Hugging Face).
    """
    if probability == 0:
        yield
        return
    blocks = _residual_blocks(clip.model)
    keep = 1 - probability

    def drop(_module: nn.Module, _inputs: Any, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        kept = torch.empty(output.shape).bernoulli_(keep, generator=generator)
        return output * kept.to(output.device) / keep

    hooks = [branch.register_forward_hook(drop) for block in blocks for branch in (block.ls_1, block.ls_2)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _residual_blocks(model: Any) -> list[Any]:
    text_tower = getattr(model, "text", model)
    blocks = list(getattr(getattr(text_tower, "transformer", None), "resblocks", []))
    if not blocks or not all(hasattr(block, "ls_1") and hasattr(block, "ls_2") for block in blocks):
        raise ValueError("bank.tower_dropout needs one of open_clip's own text towers; set it to 0 for this model")
    return blocks
