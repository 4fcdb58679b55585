"""Encoding of class names to text rows by an exported text tower."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovd.onnx.session import open_session
from ovd.onnx.tokenizer import Tokenizer
from ovd.shapes import Float32, Int64
from ovd.text.names import build_prompts, warn_of_equal_tokens

BATCH = 256
"""Number of texts encoded at a time."""


def text_files(model: Path) -> tuple[Path, Path]:
    """Return the paths of a model's text tower and tokenizer table: model.text.onnx and model.text.json."""
    return model.with_suffix(".text.onnx"), model.with_suffix(".text.json")


class TextEncoder:
    """The frozen text tower with its tokenizer and prompt templates."""

    def __init__(self, model: Path, *, threads: int = 0):
        """
        Args:
            model: ONNX file of the detector; the text tower's files lie beside it.
            threads: as for `open_session`.

        Raises:
            ValueError: a file is missing or not what `ovd export` writes.
        """
        tower, table = text_files(model)
        missing = [path.name for path in (tower, table) if not path.is_file()]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not found beside {model}; ovd export writes them unless --no-text is given"
            )
        try:
            content = json.loads(table.read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer(content["merges"], content["context_length"])
            self._templates = tuple(content["templates"])
            self._shortens = bool(content["shortens"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{table} was not written by ovd export ({error!r})") from None
        self._session = open_session(tower, threads=threads)

    def __call__(self, names: Sequence[str]) -> Float32[np.ndarray, "C D"]:
        """Encode one unit row per name: the normalized mean over the templates, as in evaluation."""
        texts = [text for name in names for text in build_prompts(name, (), 0, self._templates)]
        tokens = self._tokenizer(texts)
        warn_of_equal_tokens(names, [of_name.tobytes() for of_name in tokens.reshape(len(names), -1)])
        parts = [self._encode(tokens[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        means = np.concatenate(parts).reshape(len(names), len(self._templates), -1).mean(axis=1)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def _encode(self, tokens: Int64[np.ndarray, "N L"]) -> Float32[np.ndarray, "N D"]:
        if self._shortens:  # the tower does not attend to padding after the longest text
            tokens = tokens[:, : np.flatnonzero(tokens.any(axis=0))[-1] + 1]
        return self._session.run(None, {"tokens": tokens})[0]
