"""Words of English captions and names."""

import functools
import html
import re
import unicodedata


def word_set(words: str) -> frozenset[str]:
    """Split a string at white space into a set of words."""
    return frozenset(words.split())


_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,500}>")
_SPELLING = str.maketrans({"\u2018": "'", "\u2019": "'", "\u2010": "-", "_": " ", "&": " and "})

_IRREGULAR_PLURALS = dict(
    pair.split("/")
    for pair in word_set(
        "men/man women/woman people/person children/child feet/foot teeth/tooth geese/goose mice/mouse knives/knife "
        "wives/wife leaves/leaf loaves/loaf shelves/shelf scarves/scarf wolves/wolf calves/calf halves/half "
        "hooves/hoof elves/elf lenses/lens gases/gas axes/axe toes/toe canoes/canoe cookies/cookie "
        "movies/movie brownies/brownie hoodies/hoodie smoothies/smoothie moustaches/moustache mustaches/mustache "
        "neckties/necktie bow-ties/bow-tie beanies/beanie magpies/magpie birdies/birdie pixies/pixie "
        "selfies/selfie foodies/foodie rookies/rookie zombies/zombie genies/genie calories/calorie collies/collie "
        "quiches/quiche headaches/headache caches/cache niches/niche aches/ache creches/creche taxis/taxi skis/ski "
        "kiwis/kiwi bikinis/bikini zucchinis/zucchini martinis/martini paparazzis/paparazzi safaris/safari "
        "tvs/tv cds/cd pcs/pc"
    )
)
NO_SINGULAR = word_set(
    "aircraft binoculars canvas christmas clothes deer fish glasses goggles headphones jeans leggings lens news "
    "overalls pajamas pants pliers pyjamas rhinoceros scissors series shears sheep shorts species spectacles stairs "
    "sunglasses suspenders tights tongs trousers tweezers"
)
"""Words that end like a plural, or are one, and have no other singular."""


def split_clauses(text: str) -> list[list[str]]:
    """Split a text at punctuation marks into lists of lower-cased words.

    "&" becomes "and", HTML entities are decoded, and HTML tags and web addresses count as punctuation.
    """
    text = _TAG.sub(",", html.unescape(text))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    text = re.sub(r"https?://\S+|www\.\S+", ",", text).translate(_SPELLING)
    text = "".join(_kept_character(char) for char in text)
    # Hyphens and apostrophes at the edge of a word are dashes and quotation marks. A search that began inside a row of
    # them could not succeed, and would take a time quadratic in its length.
    text = re.sub(r"(?<![^\s,])['-]+|(?<!['-])['-]+(?![^\s,])", ",", text)
    return [words for piece in text.split(",") if (words := [word for word in piece.split() if _has_letter(word)])]


def split_words(text: str) -> list[str]:
    """Return the lower-cased words without punctuation; hyphens and apostrophes inside a word are kept."""
    return [word for clause in split_clauses(text) for word in clause]


def normalize_text(text: str) -> str:
    """Normalize case, punctuation and plural.

    Names are compared with each other, and queries with their caption, in this form.
    """
    return " ".join(map(singular, split_words(text)))


def strip_sense(name: str) -> str:
    """Remove the part in brackets from a name, such as LVIS's "bow_(weapon)"; keep a name that is only such a part."""
    return re.sub(r"\([^()]*\)", " ", name).strip(" _") or name


def singular(word: str) -> str:
    """Return the singular of a regular or common irregular English plural; other words are unchanged."""
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if len(word) < 4 or not word.endswith("s") or word in NO_SINGULAR or word.endswith(("ss", "us", "is", "'s")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y" if len(word) > 4 else word[:-1]
    # "dishes", "boxes", "classes", "buses", "potatoes"; but "horseshoes", "houses", "clauses".
    if word.endswith(("ches", "shes", "xes", "sses", "uses", "oes")) and not word.endswith(("shoes", "ouses", "auses")):
        return word[:-2]
    return word[:-1]


def _has_letter(word: str) -> bool:
    """Whether a word has a letter or number, not only marks."""
    return any(unicodedata.category(char)[0] in "LN" for char in word)


@functools.cache
def _kept_character(char: str) -> str:
    """Keep parts of words and white space, remove invisible marks, replace others by a comma, which ends a clause."""
    category = unicodedata.category(char)
    if category == "Me" or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef":
        return ""  # a mark that changes the form of the previous character, most often of an emoji
    # M: vowel signs and accents, which a regular expression's \w does not match.
    if category[0] in "LMN" or char in "'-" or char.isspace():
        return char
    return "" if category == "Cf" else ","
