"""Colors of pictures: of lines, which color-blind readers can tell apart (Okabe and Ito), of classes and of groups."""

import colorsys
import zlib
from itertools import cycle

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3d4650")
GROUP_COLORS = {
    "all": PALETTE[6],
    "base": PALETTE[0],
    "rare": PALETTE[1],
    "novel": PALETTE[1],
    "common": PALETTE[2],
    "frequent": PALETTE[3],
}
"""Color of each group of classes in all pictures; a benchmark's `novel` has the color of LVIS's `rare`."""
MAX_LUMINANCE = 0.15
"""Maximum luminance of a class's color relative to white (WCAG), for a contrast of 5 or more with white text."""


def group_colors(groups: list[str]) -> list[str]:
    """Return a color for each group: its own, or, for a group without one, the next color that no other group has."""
    taken = {GROUP_COLORS[group] for group in groups if group in GROUP_COLORS}
    free = cycle([color for color in PALETTE if color not in taken] or PALETTE)
    return [GROUP_COLORS[group] if group in GROUP_COLORS else next(free) for group in groups]


def class_color(name: str) -> tuple[int, int, int]:
    """Return the RGB color of a class, the same for its name in all pictures and dark enough for white text."""
    key = name.replace("_", " ").casefold().encode()
    linear = [_to_linear(part) for part in colorsys.hsv_to_rgb(zlib.crc32(key) / 2**32, 0.9, 1)]
    factor = min(1, MAX_LUMINANCE / luminance_of(linear))
    red, green, blue = (round(255 * _from_linear(factor * part)) for part in linear)
    return red, green, blue


def luminance_of(linear: list[float]) -> float:
    """Compute the relative luminance of linear RGB, 0 to 1."""
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _to_linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def _from_linear(part: float) -> float:
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055
