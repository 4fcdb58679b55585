"""Cleaned class names, and how they are put into prompts. Imports neither torch nor open_clip."""

from collections.abc import Sequence


def clean_name(name: str) -> str:
    """Clean a category name, so that it reads like ordinary text.

    Underscores become spaces, slashes become "or", and white space is collapsed. A sense in brackets is kept, as "bow
    (weapon)": without it, LVIS's base class "bow_(decorative_ribbons)" and its rare "bow_(weapon)" would be one text.
    Case is kept; tokenizers lower it.
    """
    return " ".join(name.replace("/", " or ").replace("_", " ").replace("(", " (").split())


def read_alike(name: str) -> str:
    """What names have in common that a text tower reads alike: their words, in lower case."""
    return clean_name(name).lower()


def check_each_once(names: Sequence[str]) -> None:
    """Check that no two names are read alike: copies of a name would share its probability.

    Raises:
        ValueError: names one that is given twice.
    """
    texts = list(map(read_alike, names))
    if len(set(texts)) < len(texts):
        raise ValueError(f"the class name {next(text for text in texts if texts.count(text) > 1)!r} is given twice")


def class_forms(name: str, synonyms: Sequence[str], num_synonyms: int) -> list[str]:
    """1 + num_synonyms cleaned names of a class, its own first; a class with fewer synonyms repeats its names."""
    # LVIS's synonyms begin with the name itself.
    forms = list(dict.fromkeys(clean_name(form) for form in (name, *synonyms)))[: 1 + num_synonyms]
    return [forms[index % len(forms)] for index in range(1 + num_synonyms)]


def prompts_of(name: str, synonyms: Sequence[str], num_synonyms: int, templates: Sequence[str]) -> list[str]:
    """All forms of a class's name in all templates, form by form."""
    return [fill(template, form) for form in class_forms(name, synonyms, num_synonyms) for template in templates]


def fill(template: str, name: str) -> str:
    """Put a cleaned name into a template; `{article}` becomes "a" or "an"."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.replace("{article}", article).replace("{}", name)
