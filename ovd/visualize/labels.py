"""Labels on pictures: a font that has their letters, and places where they hide each other least."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from ovd.shapes import Float64
from ovd.warn import warn

MAX_CACHED_FONTS = 64
"""Number of sets of letters whose font is cached."""
COVERED_BOX_COST = 0.2
"""Cost of hiding a pixel of a box under a label; hiding a pixel of another label costs 1."""
MARGIN_PX = 3
_WARNED_LETTERS = set[str]()
"""Letters that were warned about. Each letter is warned about once, although the digits of scores make most pictures
search for a font again."""

Color = tuple[int, int, int]
"""RGB color."""
Box = tuple[float, float, float, float]
"""Box as xyxy in pixels of the picture."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class FontFile:
    """A font, and the requested letters that it lacks."""

    path: str
    missing: frozenset[str] = frozenset()

    def replace_missing(self, text: str) -> str:
        """Return the text with a ? in place of each letter that the font lacks."""
        return "".join("?" if letter in self.missing else letter for letter in text)


@dataclass(frozen=True)
class Label:
    """A text for a box of a picture, and its appearance."""

    text: str
    box: Box
    background: Color
    foreground: Color
    below: bool = False
    """Whether the label goes below its box rather than above it if both places are free."""


@lru_cache(MAX_CACHED_FONTS)
def find_font(letters: frozenset[str]) -> FontFile:
    """Return DejaVu Sans if it has these letters, or else the font of the system that lacks the fewest.

    Warns once about each letter that the returned font lacks.
    """
    usual = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    best = FontFile(usual, _missing_in(usual, letters))
    for path in sorted(findSystemFonts()) if best.missing else ():
        missing = _missing_in(path, letters)
        if len(missing) < len(best.missing):
            best = FontFile(path, missing)
        if not missing:
            break
    if unwarned := best.missing - _WARNED_LETTERS:
        _WARNED_LETTERS.update(unwarned)
        words = "".join(sorted(unwarned)[:20])
        warn(f"no font on this system has all of {words}; pictures show a ? for each of them")
    return best


def find_font_for(texts: Iterable[str]) -> FontFile:
    """Return `find_font` for all letters of these texts."""
    return find_font(frozenset(letter for text in texts for letter in text if not letter.isspace()))


def _missing_in(font: str, letters: frozenset[str]) -> frozenset[str]:
    """Return the letters that a font file lacks; all if it cannot be read."""
    known = _letters_in(font)
    return frozenset(letter for letter in letters if letter not in known)


@cache
def _letters_in(font: str) -> str:
    """Return all letters of a font, as a string to save memory; empty if its file cannot be read.

    Each file is read once.
    """
    try:
        return "".join(map(chr, FT2Font(font).get_charmap()))
    except (RuntimeError, OSError):
        return ""


def draw_labels(canvas: Image.Image, labels: Sequence[Label], text_px: int) -> None:
    """Draw labels beside their boxes, inside the picture; earlier labels get the better places.

    Args:
        text_px: height of the letters.
    """
    file = find_font_for(label.text for label in labels)
    font, draw = ImageFont.truetype(file.path, text_px), ImageDraw.Draw(canvas)
    # Pillow measures no text of several lines, and a name from a file may end in a line end.
    texts = [" ".join(file.replace_missing(label.text).split()) for label in labels]
    height = sum(font.getmetrics()) + 2
    sizes = [(draw.textlength(text, font=font) + 2 * MARGIN_PX, float(height)) for text in texts]
    corners = place_labels(labels, sizes, canvas.size)
    for label, text, (width, _), (x, y) in reversed(list(zip(labels, texts, sizes, corners, strict=True))):
        draw.rectangle((x, y, x + width, y + height), fill=label.background, outline=label.foreground)
        draw.text((x + MARGIN_PX, y + 1), text, fill=label.foreground, font=font)


def place_labels(
    labels: Sequence[Label], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[tuple[float, float]]:
    """Place each label at its box where it hides the least of boxes and of the labels before it.

    Args:
        sizes: width and height of each label, in pixels.
        picture: width and height of the picture, in pixels.

    Returns:
        The upper left corner of each label.
    """
    boxes = np.array([label.box for label in labels], dtype=np.float64).reshape(-1, 4)
    placed = np.zeros((0, 4))
    for label, (width, height) in zip(labels, sizes, strict=True):
        x0, y0, x1, y1 = label.box
        over, under = y0 - height, y1
        first, second = (under, over) if label.below else (over, under)
        wanted = [(x, y) for y in (first, second) for x in (x0, x1 - width, x0 - width, x1)]
        wanted += [(x, y) for x in (x1, x0 - width, x0) for y in (y0, y1 - height)]
        places = np.array(
            [
                (min(max(0, x), max(0, picture[0] - width - 1)), min(max(0, y), max(0, picture[1] - height - 1)))
                for x, y in wanted
            ]
        )
        areas = np.concatenate([places, places + np.array([width, height], dtype=np.float64)], axis=1)
        hidden = _overlaps(areas, placed).sum(axis=1) + COVERED_BOX_COST * _overlaps(areas, boxes).sum(axis=1)
        placed = np.concatenate([placed, areas[[int(hidden.argmin())]]])
    return [(x, y) for x, y, _, _ in placed.tolist()]


def _overlaps(ones: Float64[np.ndarray, "N 4"], others: Float64[np.ndarray, "M 4"]) -> Float64[np.ndarray, "N M"]:
    """Compute the area in pixels that each pair of boxes shares."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)
