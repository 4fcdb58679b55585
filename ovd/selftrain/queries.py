"""Queries for a teacher, taken from a caption.

These are rules for English web captions; they need no data, tagger or training. Words of other languages are kept, but
none of them is recognized as a function word.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

from ovd.choices import QuerySource
from ovd.selftrain.words import NO_SINGULAR, singular, split_clauses, split_words, word_set

_SINGULAR_ARTICLES = word_set("a an another each every")
_DETERMINERS = _SINGULAR_ARTICLES | word_set(
    "the this that these those some any all both no many much more most few several other such same "
    "my your his her its our their whose which what"
)
_ARTICLES = _SINGULAR_ARTICLES | word_set("the my your his her its our their")
_FORMS_OF_BE = word_set("is are was were be been being")
_PREPOSITIONS_AND_CONJUNCTIONS = word_set(
    "of with without in on at by for from to into onto over under above below between among across against along "
    "around behind beside besides beneath near inside outside through during before after until since upon within "
    "towards toward off out up down about as like per via and or nor but if because while when where how than so"
)
_CAPTION_VERBS = word_set(
    # Auxiliaries and the verbs of captions.
    "am do does did done has have had having can could will would shall should may might must see sees seen "
    "get gets got make makes made take takes taken show shows shown look looks sit sits sat stand stands stood "
    "hold holds wear wears"
)
_VERBS_AND_THINGS = word_set("can stand")
_FUNCTION_WORDS = (
    _DETERMINERS
    | _FORMS_OF_BE
    | _PREPOSITIONS_AND_CONJUNCTIONS
    | _CAPTION_VERBS
    # Pronouns and adverbs.
    | word_set("i you he she it we they me him us them who whom there here now then too also very just only not next")
)
_OBJECT_VERBS = word_set(
    # After a noun these take an object ("man riding horse"); before a noun they describe it ("playing card").
    "riding holding wearing eating drinking using carrying showing featuring including containing making taking having "
    "playing driving watching looking sitting standing walking reading pulling pushing selling buying"
)
_ING_NOUNS = word_set(
    "awning bedding building ceiling clothing dressing dumpling duckling earring evening frosting icing legging "
    "lightning morning painting piping pudding railing seedling wedding"
)
_PICTURE_WORDS = word_set(
    # Words for the picture itself, not for an object in it.
    "photo photos photograph photographs photography picture pictures pic image images drawing drawings illustration "
    "illustrations clipart sketch closeup close-up view shot vector stock background wallpaper"
)
_AMOUNTS_AND_PARTS = word_set(
    # Before "of", these are an amount or a part, not an object.
    "pair pairs couple group groups set lot lots number variety kind type bunch row rows piece pieces slice slices "
    "top front side middle end"
)
_ONE = word_set("one 1")
_NUMBERS = word_set("one two three four five six seven eight nine ten eleven twelve dozen hundred thousand")
_COLORS = word_set(
    "black white red green blue yellow orange purple pink brown gray grey beige teal turquoise maroon cyan"
)
_ADJECTIVES = word_set(
    "small big large little tiny huge old new young beautiful cute pretty nice lovely amazing great good best bright "
    "colorful colourful colored coloured different various modern vintage royalty-free free"
)
_DESCRIBING = _COLORS | _ADJECTIVES
_KINDS = word_set(
    # Names in which the color or adjective is part of the name.
    "black_pepper black_tea blue_jay blue_whale brown_rice great_dane green_bean green_onion green_pepper green_tea "
    "orange_juice red_cabbage red_panda red_pepper red_wine white_wine"
)
_IN_FRONT = _NUMBERS | _DESCRIBING

MAX_QUERIES = 300
"""Number of queries per image, at most (OWLv2's value)."""
MAX_WORDS = 10
"""Number of words of an n-gram, at most (OWLv2's value)."""


def caption_queries(caption: str) -> tuple[str, ...]:
    """Return the whole caption, with white space collapsed, as the only query; none if it has no word."""
    return (" ".join(caption.split()),) if split_words(caption) else ()


def ngram_queries(caption: str) -> tuple[str, ...]:
    """Return every run of up to `MAX_WORDS` words that neither begins nor ends with a function word (OWLv2's rule).

    The runs are lower-cased, may span punctuation, and have no duplicates. They are ordered by length, then as in the
    caption, so that the limit of `MAX_QUERIES` removes the longest.
    """
    words = split_words(caption)
    queries: dict[str, None] = {}
    for length in range(1, min(MAX_WORDS, len(words)) + 1):
        for start in range(len(words) - length + 1):
            run = words[start : start + length]
            if _is_function_word(run[0]) or _is_function_word(run[-1]):
                continue
            queries[" ".join(run)] = None
            if len(queries) == MAX_QUERIES:
                return tuple(queries)
    return tuple(queries)


def noun_queries(caption: str) -> tuple[str, ...]:
    """Return the noun phrases of a caption, in its order, without duplicates.

    A phrase is a run of words between punctuation, function words and verbs, without the count, colors and other common
    adjectives in front of it ("two red umbrellas" -> "umbrella") and without words for the picture itself ("a photo
    of"). "of" joins two phrases into one ("cup of coffee"); "with" gives the joined phrase and both parts. "and" joins
    no phrases: captions like "a dog and a cat" are far more frequent than those like "a bow and arrow".
    """
    phrases = (phrase for clause in split_clauses(caption) for phrase in _phrases_of_clause(clause))
    return tuple(islice(dict.fromkeys(phrases), MAX_QUERIES))


def _is_function_word(word: str) -> bool:
    """Whether a word is a function word, including contractions such as "it's" and "isn't"."""
    return word.partition("'")[0] in _FUNCTION_WORDS or word.endswith("n't")


@dataclass(frozen=True)
class _Chunk:
    """Words between two boundaries that contain a noun phrase."""

    link: tuple[str, ...]
    """Words between the previous chunk and this one."""
    words: tuple[str, ...]
    """Words of the chunk, as in the caption."""
    phrase: str
    """Noun phrase in the singular, without the number and adjectives in front of it."""


def _phrases_of_clause(clause: list[str]) -> Iterator[str]:
    # A phrase after "of" specifies the object; one after "with" is often a separate object.
    things = [_joined(chain) for chain in _chains(_chunks(clause), "of")]
    for chain in _chains(things, "with"):
        if len(chain) > 1:
            yield _joined(chain).phrase
        yield from (thing.phrase for thing in chain)


def _chains(chunks: Iterable[_Chunk], preposition: str) -> Iterator[list[_Chunk]]:
    """Group chunks in which the preposition, possibly with a determiner, links each to the previous one."""
    chain: list[_Chunk] = []
    for chunk in chunks:
        if chain and not (chunk.link[0] == preposition and _DETERMINERS.issuperset(chunk.link[1:])):
            yield chain
            chain = []
        chain.append(chunk)
    if chain:
        yield chain


def _joined(chain: list[_Chunk]) -> _Chunk:
    first, *others = chain
    followers = tuple(word for chunk in others for word in (*chunk.link, *chunk.words))
    return _Chunk(first.link, first.words + followers, " ".join([first.phrase, *followers]))


def _chunks(clause: list[str]) -> Iterator[_Chunk]:
    """Split a clause at function words and verbs into chunks.

    Words at the end of a chunk that belong to no noun are added to the link of the next chunk.
    """
    link: list[str] = []
    words: list[str] = []
    for word, following in pairwise([*clause, None, None]):
        if word is not None and _is_in_phrase(word, following, words, link):
            words.append(word)
            continue
        end = len(words)
        while end and (_is_tail(words[end - 1]) or (word == "of" and words[end - 1] in _AMOUNTS_AND_PARTS)):
            end -= 1
        if phrase := _phrase(words[:end], follows_singular_article=bool(_SINGULAR_ARTICLES.intersection(link[-1:]))):
            yield _Chunk(tuple(link), tuple(words[:end]), phrase)
            link, words = [], words[end:]
        link += words
        words = []
        if word is not None:
            link.append(word)


def _is_in_phrase(word: str, following: str | None, words: list[str], link: list[str]) -> bool:
    """Whether a word belongs to the phrase of the words before it.

    Two function words do where they are nouns: "can" and "stand" after an article ("a stand mixer"), and "can" at the
    end of a phrase ("a trash can on the street").
    """
    if _is_verb(word, words, link):
        return False
    if not _is_function_word(word):
        return True
    if not words:
        return word in _VERBS_AND_THINGS and bool(_ARTICLES.intersection(link[-1:]))
    return word == "can" and (following is None or following in _PREPOSITIONS_AND_CONJUNCTIONS)


def _is_verb(word: str, words: list[str], link: list[str]) -> bool:
    """Whether a word such as "playing" takes an object here: after a noun, or after a form of "be"."""
    if words:
        return word in _OBJECT_VERBS and not _IN_FRONT.issuperset(words)
    return word in _OBJECT_VERBS and bool(_FORMS_OF_BE.intersection(link[-1:]))


def _is_tail(word: str) -> bool:
    """Whether the last word of a chunk is not its noun: "umbrella illustration", "dog running", "apple isolated"."""
    if word.endswith("ing"):
        # A verb has a vowel before "ing", unlike "ring" and "string".
        return word not in _ING_NOUNS and re.search("[aeiouy]", word[:-3]) is not None
    is_participle = len(word) > 5 and word.endswith("ed") and not word.endswith(("eed", "bed", "sled"))
    return is_participle or word in _PICTURE_WORDS


def _phrase(words: list[str], *, follows_singular_article: bool) -> str:
    """Return the noun phrase of a chunk's words; empty if there are only numbers, adjectives or a single letter."""
    if not words:
        return ""
    head = words[-1] if follows_singular_article else singular(words[-1])
    # A number before a singular is not a count: "six pointed star", "three piece suit".
    is_plural = head != words[-1] or head in NO_SINGULAR
    start = int(words[0] in _ONE or (_is_number(words[0]) and is_plural and not follows_singular_article))
    while start < len(words) - 1 and _is_adjective(words[start], words[start + 1]):
        if f"{words[start]}_{singular(words[start + 1])}" in _KINDS and start == len(words) - 2:
            break
        start += 1
    phrase = " ".join([*words[start:-1], head]) if start < len(words) else ""
    is_no_noun = _IN_FRONT.issuperset(phrase.split()) and phrase != "orange"
    return "" if is_no_noun or re.fullmatch(r"[a-z]|[\d ]+", phrase) else phrase


def _is_number(word: str) -> bool:
    return word in _NUMBERS or word.isdecimal()


def _is_adjective(word: str, following: str) -> bool:
    """Whether a word is a common adjective; "light" and "dark" only before a color (unlike in "light bulb")."""
    return word in _DESCRIBING or (word in ("light", "dark") and following in _COLORS)


@dataclass(frozen=True)
class CaptionQueries:
    """A source of queries from captions."""

    queries_of: Callable[[str], tuple[str, ...]]
    are_names: bool
    """Whether the queries are put into prompt templates, like class names."""


QUERY_SOURCES: dict[QuerySource, CaptionQueries] = {
    "caption": CaptionQueries(caption_queries, are_names=False),
    "ngrams": CaptionQueries(ngram_queries, are_names=True),
    "nouns": CaptionQueries(noun_queries, are_names=True),
}
"""Query sources by name, except `classes`, which does not use the caption."""
