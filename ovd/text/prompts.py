"""Class names cleaned once, and the prompts they are put into."""

import re

from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

SHORT_TEMPLATES = (
    "{}",
    "{article} {}",
    "a photo of {article} {}",
    "a picture of {article} {}",
    "a drawing of {article} {}",
    "an image with {article} {}",
    "there is {article} {}",
)
FULL_TEMPLATES = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
TEMPLATES = {"none": ("{}",), "short": SHORT_TEMPLATES, "full": FULL_TEMPLATES}


def clean_name(name: str) -> str:
    """A category name as a person would write it.

    Underscores become spaces, a bracketed sense is moved in front ("bass_(fish)" -> "fish bass" would read wrong, so
    it is dropped: "bass"), slashes become "or", and white space is folded. Case is kept; tokenizers lower it.
    """
    name = re.sub(r"_?\([^)]*\)", "", name.replace("/", " or "))
    return " ".join(name.replace("_", " ").split())


def fill(template: str, name: str) -> str:
    """Put a cleaned name into a template; `{article}` becomes "a" or "an"."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.replace("{article}", article).replace("{}", name)
