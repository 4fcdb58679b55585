"""Export of a CLIP model's text tower as an ONNX file, and of its tokenizer table as JSON."""

import copy
from pathlib import Path
from typing import Any

import open_clip
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovd.choices import Templates
from ovd.clip.load import Clip
from ovd.export.tracing import write_onnx
from ovd.files import write_json
from ovd.onnx.text import text_files
from ovd.text.encoder import TextSide, shortened_tensors
from ovd.text.prompts import TEMPLATES

SAMPLE = "Two_Words&#39; (3)"
"""Text that each of open_clip's cleaning functions changes differently."""


class TextGraph(nn.Module):
    """A module from token ids to unit embeddings."""

    def __init__(self, clip: Clip):
        super().__init__()
        self.side = TextSide(copy.deepcopy(clip.model))
        self.side.model.visual = nn.Identity()
        self.shortens = bool(shortened_tensors(clip, 1))
        """Whether texts may have fewer tokens than the context, because the tower does not attend to padding."""
        self._tower = (getattr(self.side.model, "text", self.side.model),)  # a tuple, so it is not registered twice
        if self.shortens:
            (tower,) = self._tower
            self._positions, self._mask = tower.positional_embedding.detach(), tower.attn_mask
            del tower.positional_embedding, tower.attn_mask

    def forward(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        if self.shortens:
            (tower,), length = self._tower, tokens.shape[1]
            tower.positional_embedding, tower.attn_mask = self._positions[:length], self._mask[:length, :length]
        return self.side(tokens).float()


def export_text(clip: Clip, templates: Templates, model: Path) -> None:
    """Write the text tower and the tokenizer table beside a detector's file.

    Raises:
        ValueError: the tokenizer is not open_clip's `SimpleTokenizer` as CLIP has it, or a package is missing.
    """
    tower, table = text_files(model)
    tokenizer: Any = clip.tokenizer
    if not _is_simple(tokenizer):
        raise ValueError(
            f"the tokenizer of the run's CLIP model is a {type(tokenizer).__name__}, but only CLIP's own tokenizer "
            "can be exported; --no-text exports the detector alone, and text rows must then be made with torch"
        )
    graph, tokens = TextGraph(clip).eval(), tokenizer(["an anchor", "a cat"])
    length = int(tokens.any(dim=0).sum())
    write_onnx(
        graph,
        (tokens[:, :length] if graph.shortens else tokens,),
        tower,
        inputs={"tokens": {0: "texts", 1: "length"} if graph.shortens else {0: "texts"}},
        outputs={"rows": {0: "texts"}},
        metadata={},
    )
    content = {
        "context_length": tokenizer.context_length,
        "shortens": graph.shortens,
        "templates": TEMPLATES[templates],
        "merges": [" ".join(pair) for pair in tokenizer.bpe_ranks],
    }
    write_json(table, content, indent=None)


def _is_simple(tokenizer: Any) -> bool:
    """Return whether a tokenizer is CLIP's own: lowercase text, two special tokens, and texts cut at the end."""
    return (
        isinstance(tokenizer, open_clip.SimpleTokenizer)
        and tokenizer.clean_fn(SAMPLE) == "two_words' (3)"
        and len(tokenizer.all_special_ids) == 2
        and tokenizer.reduction_fn is None
    )
