"""CLIP's tokenizer: byte pairs of lowercase words (Sennrich et al. 2016; Radford et al. 2021), from a table of merges.

The tokens equal those of open_clip's `SimpleTokenizer`, except for the texts that `ovd.text.clean` leaves unchanged.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ovd.shapes import Int64
from ovd.text.clean import clean

END_OF_WORD = "</w>"
SPECIAL = ("<start_of_text>", "<end_of_text>")
ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
MAX_CACHED_WORDS = 2**16


class Tokenizer:
    """A tokenizer from texts to token ids, padded with zeros to the context length."""

    def __init__(self, merges: Sequence[str], context_length: int):
        """
        Args:
            merges: pairs of symbols, separated by a space, in order of priority.
            context_length: L, tokens per text; longer texts are cut.
        """
        bytes_as_letters = _bytes_as_letters()
        pairs = [tuple(merge.split()) for merge in merges]
        symbols = [*bytes_as_letters, *(letter + END_OF_WORD for letter in bytes_as_letters), *map("".join, pairs)]
        self._ids = {symbol: number for number, symbol in enumerate([*symbols, *SPECIAL])}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._letters = {ord_: letter for letter, ord_ in bytes_as_letters.items()}
        self._context_length = context_length
        self._ids_of = lru_cache(MAX_CACHED_WORDS)(self._encode_word)

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "N L"]:
        start, end = (self._ids[token] for token in SPECIAL)
        tokens = np.zeros((len(texts), self._context_length), dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = [start, *(number for word in words_of(clean(text)) for number in self._ids_of(word)), end]
            if len(ids) > self._context_length:
                ids = [*ids[: self._context_length - 1], end]
            row[: len(ids)] = ids
        return tokens

    def _encode_word(self, word: str) -> list[int]:
        if word in SPECIAL:
            return [self._ids[word]]
        symbols = [self._letters[byte] for byte in word.encode("utf-8")]
        symbols[-1] += END_OF_WORD
        while len(symbols) > 1:
            first = min(pairwise(symbols), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if first not in self._ranks:
                break
            merged: list[str] = []
            position = 0
            while position < len(symbols):
                is_pair = tuple(symbols[position : position + 2]) == first
                merged.append("".join(first) if is_pair else symbols[position])
                position += 1 + is_pair
            symbols = merged
        return [self._ids[symbol] for symbol in symbols]


def _bytes_as_letters() -> dict[str, int]:
    """Return a dict from printable characters to the bytes that they represent, in the order of token ids.

    A printable byte is represented by its own character.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


def words_of(text: str) -> Iterator[str]:
    """Yield runs of letters, single digits, and runs of other characters; English endings such as 's are separate."""
    position = 0
    while position < len(text):
        whole = next((part for part in (*SPECIAL, *ENDINGS) if text.startswith(part, position)), None)
        kind = _kind(text[position])
        if kind == " ":
            position += 1
            continue
        end = position + (1 if whole is None else len(whole))
        while whole is None and kind != "N" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        yield text[position:end]
        position = end


def _kind(letter: str) -> str:
    """Return L for a letter, N for a number, a space for white space, and an empty string for all else."""
    if letter.isspace():
        return " "
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else ""
