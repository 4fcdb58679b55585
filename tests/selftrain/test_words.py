"""Words of captions and names, and their normalized forms."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.selftrain.words import normalize_text, split_clauses, split_words, strip_sense

# Words that the rules treat specially, mixed with arbitrary ones.
KNOWN_WORDS = "boxes glasses women bus lens dress it's isn't dogs' , . - & x"
words = st.sampled_from(KNOWN_WORDS.split()) | st.text(max_size=6)
captions = st.text(max_size=60) | st.lists(words, max_size=14).map(" ".join)


def test_punctuation_and_html_end_a_clause():
    assert split_clauses("A cat &amp; a dog&#39;s bowl<br/>salt-and-pepper hair - “kite”, 3 < 4!") == [
        ["a", "cat", "and", "a", "dog's", "bowl"],
        ["salt-and-pepper", "hair"],
        ["kite"],
        ["3"],
        ["4"],
    ]


def test_a_long_row_of_hyphens_inside_a_word_takes_no_time():
    word = "a" + "-" * 200_000 + "b"  # a quarter of an hour with a search from each hyphen
    assert split_words(f"{word} ---c d--- e") == [word, "c", "d", "e"]


def test_a_word_is_more_than_marks():
    for text in ("\u2764\ufe0f", "\u20e3", "\ufe0f", "-"):
        assert split_words(text) == []


@pytest.mark.parametrize(
    "word",
    [
        "glasses", "scissors", "cactus", "lens", "dress", "iris", "gas", "jeans", "boy's", "overalls", "rhinoceros",
        "spectacles", "suspenders",
    ],
)  # fmt: skip
def test_words_that_only_look_like_plurals(word):
    assert normalize_text(word) == word


def test_a_name_without_its_sense():
    assert strip_sense("bow_(weapon)") == "bow"
    assert strip_sense("(weapon)") == "(weapon)"


@given(captions)
@settings(deadline=None)
def test_normalizing_twice_changes_nothing(caption):
    assert normalize_text(normalize_text(caption)) == normalize_text(caption)
    assert normalize_text(f" {caption.upper()}!") == normalize_text(caption.upper())
