"""The words whose tokens CLIP's tokenizer keeps: open_clip's keeps those of every word that it ever reads, which fills
the memory of a server, or of a labelling of captions.
"""

import open_clip

WORDS_KEPT = 2**16


class KeptWords(dict[str, str]):
    """The tokens of the first `WORDS_KEPT` words, most of which are common ones; others are split each time.

    What was kept stays, since another thread may be about to read it.
    """

    def __setitem__(self, word: str, tokens: str) -> None:
        if len(self) < WORDS_KEPT:
            super().__setitem__(word, tokens)


def keep_few_words(tokenizer: object) -> None:
    """Bound the memory that a tokenizer takes, in place; only open_clip's own grows without bound."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        tokenizer.cache = KeptWords(tokenizer.cache)
