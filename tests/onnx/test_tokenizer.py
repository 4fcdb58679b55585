"""Tokens equal those of open_clip's SimpleTokenizer for both merge tables."""

import random

import open_clip
import pytest

from ovd.clip.load import TINY_CLIP
from ovd.data.world.glyphs import load_glyphs
from ovd.onnx.tokenizer import Tokenizer, clean, words_of
from ovd.text.names import fill_template
from ovd.text.prompts import FULL_TEMPLATES, SHORT_TEMPLATES

ODD = [
    "", " ", "a", "A photo of   an ANCHOR.", "it's they'll we've I'd", "don't!'s", "rock 'n' roll", "x1y22z333",
    "caf\u00e9 cre\u0300me", "\u201cquoted\u201d \u2018it\u2019s\u2019", "tom &amp; jerry &lt;3 &amp;amp;",
    "\ufb01sh o\ufb03ce", "\uff37\uff29\uff24\uff25 \uff71\uff72", "\u65e5\u672c\u8a9e \u043f\u0440\u0438",
    "\u0645\u0631\u062d \u0e01\u0928", "\u2460 \u00bd \u0663 \u216b", "emoji \U0001f600\U0001f680!!",
    "<start_of_text> x <end_of_text>y", "a_b-c/d\\e", "\u00a0no\u2003break\u200bspace", "\u3000wide\u3000",
    "100% 3.14 $5", "'", "''s", "word " * 100,
]  # fmt: skip
ALPHABET = (
    "abcXYZ'\u2019-_.,!?&;#0123456789 \t\n\u00e9\u00fc\u00df\u0130\u0131\u01c5\ufb02\u03a9\u0416\u05d0\u0928\u4e2d"
    "\u0e01\u2463\u2603\U0001f43c"
)
"""Characters of random texts, without those that a wrong encoding produces, since only open_clip repairs such text."""


def random_texts(number: int) -> list[str]:
    chance = random.Random(0)
    return ["".join(chance.choices(ALPHABET, k=chance.randint(1, 40))) for _ in range(number)]


@pytest.fixture(scope="module", params=["CLIP's", "tiny"])
def both(request) -> tuple[Tokenizer, open_clip.SimpleTokenizer]:
    if request.param == "tiny":
        reference = open_clip.SimpleTokenizer(bpe_path=str(TINY_CLIP / "merges.txt.gz"), context_length=32)
    else:
        reference = open_clip.SimpleTokenizer()
    assert reference.context_length
    return Tokenizer([" ".join(pair) for pair in reference.bpe_ranks], reference.context_length), reference


def test_prompts_have_the_same_tokens(both):
    own, reference = both
    texts = [fill_template(template, glyph.name) for glyph in load_glyphs() for template in SHORT_TEMPLATES]
    texts += [fill_template(template, "chess king (outlined)") for template in FULL_TEMPLATES]
    assert (own(texts) == reference(texts).numpy()).all()


def test_odd_texts_have_the_same_tokens(both):
    own, reference = both
    for text in [*ODD, *random_texts(400)]:
        assert (own([text]) == reference([text]).numpy()).all(), ascii(text)


def test_no_text_has_no_tokens(both):
    assert both[0]([]).shape == (0, both[1].context_length)


def test_words_cover_all_but_white_space():
    for text in random_texts(100):
        cleaned = clean(text)
        assert "".join(words_of(cleaned)) == "".join(cleaned.split())
