"""Colors of pictures: lines that a color-blind reader tells apart (Okabe and Ito), and of classes and their groups."""

import colorsys
import zlib
from itertools import cycle

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3d4650")
GROUPS = {
    "all": LINES[6],
    "base": LINES[0],
    "rare": LINES[1],
    "novel": LINES[1],
    "common": LINES[2],
    "frequent": LINES[3],
}
"""A group of classes has one color in all pictures; so has a benchmark's `novel`, which is what `rare` is in LVIS."""
LUMINANCE = 0.15
"""The most that a class's color has of white's (WCAG), so that white text on it is read: the contrast is 5 or more."""


def group_colors(groups: list[str]) -> list[str]:
    """A color for each group: its own, or, for one that has none, the next that none of the others has."""
    taken = {GROUPS[group] for group in groups if group in GROUPS}
    free = cycle([color for color in LINES if color not in taken] or LINES)
    return [GROUPS[group] if group in GROUPS else next(free) for group in groups]


def class_color(name: str) -> tuple[int, int, int]:
    """RGB color of a class, the same for its name wherever it is drawn; dark enough for white text."""
    key = name.replace("_", " ").casefold().encode()
    linear = [_to_linear(part) for part in colorsys.hsv_to_rgb(zlib.crc32(key) / 2**32, 0.9, 1)]
    factor = min(1, LUMINANCE / luminance_of(linear))
    red, green, blue = (round(255 * _from_linear(factor * part)) for part in linear)
    return red, green, blue


def luminance_of(linear: list[float]) -> float:
    """Relative luminance of linear RGB, 0 to 1."""
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _to_linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def _from_linear(part: float) -> float:
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055
