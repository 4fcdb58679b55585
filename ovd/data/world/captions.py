"""Captions as noisy as those of the web: omitted objects, synonyms, counts, colors, wrong words."""

from collections import Counter

import numpy as np

from ovd.data.world.glyphs import load_glyphs
from ovd.data.world.scene import DrawnObject
from ovd.data.world.settings import Settings

OPENINGS = ("", "a photo of ", "a picture of ", "a drawing of ", "an image with ", "this is ", "there is ", "we see ")
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def pluralize(phrase: str) -> str:
    return phrase if phrase.endswith("s") else f"{phrase}s"


def caption(rng: np.random.Generator, objects: tuple[DrawnObject, ...], settings: Settings) -> str:
    """Describe a scene with the noise rates of the settings; empty if every object is left out."""
    table = load_glyphs()
    kept = [item for item in objects if rng.random() >= settings.caption_omission]
    phrases = []
    for glyph, count in Counter(item.glyph for item in kept).items():
        named = table[rng.integers(len(table)) if rng.random() < settings.caption_wrong_word else glyph]
        name = named.name
        if named.synonyms and rng.random() < settings.caption_synonym:
            name = named.synonyms[rng.integers(len(named.synonyms))]
        if count > 1:
            phrases.append(f"{COUNTS[count]} {pluralize(name)}")
            continue
        if rng.random() < settings.caption_color:
            name = f"{next(item.color for item in kept if item.glyph == glyph)} {name}"
        phrases.append(with_article(name) if rng.random() < 0.8 else name)
    if not phrases:
        return ""
    rng.shuffle(phrases)
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return OPENINGS[rng.integers(len(OPENINGS))] + listed
