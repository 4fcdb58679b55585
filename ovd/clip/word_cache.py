"""A bounded cache of words' tokens for CLIP's tokenizer: open_clip's own keeps every word that it ever reads, which
fills the memory of a server, or of a labeling of captions.
"""

import open_clip

MAX_CACHED_WORDS = 2**16


class BoundedWordCache(dict[str, str]):
    """Tokens of the first `MAX_CACHED_WORDS` words, most of which are common ones; other words are tokenized each time.

    Entries are never removed, since another thread may be about to read them.
    """

    def __setitem__(self, word: str, tokens: str) -> None:
        if len(self) < MAX_CACHED_WORDS:
            super().__setitem__(word, tokens)


def bound_word_cache(tokenizer: object) -> None:
    """Bound the cache of a tokenizer, in place; only that of open_clip's own tokenizer grows without bound."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        tokenizer.cache = BoundedWordCache(tokenizer.cache)
