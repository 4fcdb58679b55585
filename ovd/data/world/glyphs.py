"""The world's classes: 287 pictographs of DejaVu Sans, the font that matplotlib installs.

The list (glyphs.csv) was curated by eye and by likeness: no symbol's mirror image or quarter turn resembles another
(normalized correlation of blurred masks below 0.87), so flips and small rotations keep the class. Colors are
random in the scenes, so Unicode's "black" and "white" are called filled and outlined.
"""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovd.shapes import UInt8

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
MASK_SIDES_PX = (24, 48, 96, 160)


@dataclass(frozen=True)
class Glyph:
    """One class of the world."""

    character: str
    name: str
    synonyms: tuple[str, ...]


@functools.cache
def load_glyphs() -> tuple[Glyph, ...]:
    """Return all classes, in the order of glyphs.csv."""
    with (Path(__file__).parent / "glyphs.csv").open(encoding="utf-8") as file:
        return tuple(
            Glyph(chr(int(row["codepoint"], 16)), row["name"], tuple(filter(None, row["synonyms"].split("|"))))
            for row in csv.DictReader(file)
        )


@functools.cache
def glyph_mask(character: str, longest_side_px: int) -> UInt8[np.ndarray, "h w"]:
    """Draw the coverage (0..255) of a character, cropped to its ink and scaled to a longest side.

    It is a little bolder than in the font, so that thin symbols survive at 20 px.
    """
    font = ImageFont.truetype(str(FONT), 240)
    canvas = Image.new("L", (720, 720))
    ImageDraw.Draw(canvas).text((360, 360), character, font=font, fill=255, anchor="mm", stroke_width=3)
    ink = canvas.crop(canvas.getbbox())
    scale = longest_side_px / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    return cv2.resize(np.asarray(ink), size, interpolation=cv2.INTER_AREA)


def mask_for_size(character: str, size_px: float) -> UInt8[np.ndarray, "h w"]:
    """Return the smallest prepared mask that need not be enlarged, so that warping neither aliases nor blurs much."""
    side = next((side for side in MASK_SIDES_PX if side >= size_px), MASK_SIDES_PX[-1])
    return glyph_mask(character, side)
