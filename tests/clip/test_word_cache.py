"""The bounded word cache of CLIP's tokenizer."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from ovd.clip import word_cache
from ovd.clip.word_cache import BoundedWordCache, bound_word_cache

TEXTS = [f"{first}{second} zebra <end_of_text>" for first in "abcdefgh" for second in "qrstuvwx"]


def test_tokens_are_the_same_and_few_words_are_kept(tiny_clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MAX_CACHED_WORDS", 20)
    tokenizer = copy.deepcopy(tiny_clip.tokenizer)
    tokenizer.cache = {word: word for word in ("<start_of_text>", "<end_of_text>")}
    usual = copy.deepcopy(tokenizer)
    bound_word_cache(tokenizer)
    for _ in range(2):
        assert torch.equal(tokenizer(TEXTS), usual(TEXTS))
    assert len(tokenizer.cache) == 20 < len(usual.cache)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda words: pickle.loads(pickle.dumps(words))])
def test_a_copy_is_bounded_too(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MAX_CACHED_WORDS", 2)
    words = copied(BoundedWordCache({"a": "a</w>"}))
    words["b"], words["c"] = "b</w>", "c</w>"
    assert words == {"a": "a</w>", "b": "b</w>"}


def test_every_clip_has_it_whose_tokenizer_needs_it(tiny_clip) -> None:
    assert isinstance(tiny_clip.tokenizer.cache, BoundedWordCache)
    other = SimpleNamespace(cache={})
    bound_word_cache(other)
    assert type(other.cache) is dict  # other tokenizers are left alone
