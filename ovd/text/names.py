"""Cleaning of class names, and the prompts made of them. Imports neither torch nor open_clip."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ovd.format_count import format_count
from ovd.text.clean import clean
from ovd.warn import warn

MAX_CACHED_NAME_LISTS = 8
"""Number of lists of names whose text embeddings a predictor caches, the most recently used ones."""


def clean_name(name: str) -> str:
    """Clean a category name, so that it reads like ordinary text.

    Underscores become spaces, slashes become "or", and white space is collapsed. A sense in brackets is kept, as "bow
    (weapon)": without it, LVIS's base class "bow_(decorative_ribbons)" and its rare "bow_(weapon)" would be one text.
    Case is kept; tokenizers lowercase the text.
    """
    return " ".join(name.replace("/", " or ").replace("_", " ").replace("(", " (").split())


def name_key(name: str) -> str:
    """Return the key that names share if a text tower reads them alike: cleaned and lowercase; "" for a blank name."""
    return clean(clean_name(name))


def isin_names(names: Iterable[str], others: Iterable[str]) -> list[bool]:
    """Return, for each name, whether a text tower reads it like one of the others."""
    known = set(map(name_key, others))
    return [name_key(name) in known for name in names]


def as_query_tuple(names: Any, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """Return queries as a tuple; a single query may be given without a list.

    Args:
        kinds: types of a query: text, and types with a `name`.

    Raises:
        ValueError: there is no query, or one is blank or of another type.
    """
    is_list = isinstance(names, Iterable) and not isinstance(names, (*kinds, str, bytes, Mapping))
    queries = tuple(names) if is_list else (names,)
    if not queries:
        raise ValueError("give at least one class name to detect")
    if wrong := [item for item in queries if not isinstance(item, kinds)]:
        raise ValueError(f"class names must be strings, not {type(wrong[0]).__name__}: {wrong[0]!r}")
    words = [item if isinstance(item, str) else item.name for item in queries]
    if blank := [position for position, word in enumerate(words) if not name_key(word)]:
        raise ValueError(f"class names at these positions are blank: {blank} (counted from 0)")
    return queries


def check_unique_names(names: Iterable[str | None]) -> None:
    """Check that a text tower reads no two names alike, since copies of a name would share its probability.

    Args:
        names: name of each query; None for a query that is more than one text.

    Raises:
        ValueError: a name is given twice; the message says which.
    """
    seen: set[str] = set()
    for name in (name_key(name) for name in names if name is not None):
        if name in seen:
            raise ValueError(f"the class name {name!r} is given twice")
        seen.add(name)


def find_equal_tokens(names: Sequence[str], tokens: Sequence[bytes]) -> list[tuple[str, str]]:
    """Return pairs of different names that have the same tokens, often because texts are cut at the context length.

    Such names have the same embedding, and share the probability of one name.

    Args:
        tokens: tokens of all prompts of each name.
    """
    first: dict[bytes, str] = {}
    return [
        (before, name)
        for name, of_name in zip(names, tokens, strict=True)
        if name_key(before := first.setdefault(of_name, name)) != name_key(name)
    ]


def warn_of_equal_tokens(names: Sequence[str], tokens: Sequence[bytes]) -> None:
    """Warn about the pairs that `find_equal_tokens` finds."""
    pairs = find_equal_tokens(names, tokens)
    if pairs:
        one, other = pairs[0]
        warn(
            f"the text tower cannot distinguish {format_count(len(pairs), 'pair')} of names, such as {one!r} and "
            f"{other!r}: their tokens are equal, or differ beyond its context; leave one out, or use fewer words"
        )


def class_forms(name: str, synonyms: Sequence[str], num_synonyms: int) -> list[str]:
    """Return 1 + num_synonyms cleaned names of a class, its own first; a class with fewer synonyms repeats them."""
    by_reading: dict[str, str] = {}  # LVIS's synonyms begin with the name itself
    for form in (name, *synonyms):
        if reading := name_key(form):
            by_reading.setdefault(reading, clean_name(form))
    forms = (list(by_reading.values()) or [clean_name(name)])[: 1 + num_synonyms]
    return [forms[index % len(forms)] for index in range(1 + num_synonyms)]


def build_prompts(name: str, synonyms: Sequence[str], num_synonyms: int, templates: Sequence[str]) -> list[str]:
    """Return every name of a class from `class_forms` in every template, name by name."""
    return [
        fill_template(template, form) for form in class_forms(name, synonyms, num_synonyms) for template in templates
    ]


def fill_template(template: str, name: str) -> str:
    """Put a cleaned name into a template; `{article}` becomes "a" or "an"."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.replace("{article}", article).replace("{}", name)
