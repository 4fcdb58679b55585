"""Pictures: boxes with names on an image, and grids of such images."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import colormaps, get_data_path
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import nms

from ovd.files import atomic_write
from ovd.structures import Detections
from ovd.warn import warn

SAME_PLACE_IOU = 0.5
SMALLEST_SHOWN_PX = 384
GRID_PX = 640
"""Longest side of an image in a grid."""
GRID_COLUMNS = 4

FONTS_KEPT = 64
"""Sets of letters whose font is not looked for again."""

MISSED_COLOR = (255, 255, 255)


def choose_shown(
    detections: Detections, threshold: float | Sequence[float], *, limit: int | None = None, overlapping: bool = False
) -> Detections:
    """Select the detections to draw: those of at least this score, best first, at most `limit` of them.

    Unless `overlapping`, NMS across classes (IoU 0.5) leaves only the best one at every place: metrics count every
    class's score for a box, but a picture should show one.

    Args:
        threshold: one for all classes, or one for each.
    """
    minimum = torch.as_tensor(threshold, dtype=detections.scores.dtype)
    wanted = detections.scores >= (minimum if minimum.ndim == 0 else minimum[detections.classes])
    shown = wanted.nonzero().flatten()
    if not overlapping:
        shown = shown[nms(detections.boxes[shown], detections.scores[shown], SAME_PLACE_IOU)]
    shown = shown[:limit]
    return detections.take(shown)


def class_color(row: int) -> tuple[int, int, int]:
    """RGB color of a class row; neighboring rows have distant colors."""
    red, green, blue, _ = colormaps["hsv"]((row * 0.618034) % 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"],
    detections: Detections,
    names: Sequence[str] | Mapping[int, str],
    *,
    with_scores: bool = True,
    missed: Detections | None = None,
    largest_px: int | None = None,
) -> Image.Image:
    """Draw a box, name and score for every detection on a copy of the image, which is enlarged if it is small.

    Args:
        names: the name of each class that occurs.
        missed: true objects that no detection is right about. They get a thin white box, and under it their name in
            parentheses.
        largest_px: longest side of the picture; larger images are made smaller. By default they keep their size.
    """
    height, width = image.shape[:2]
    zoom: float = max(1, -(-SMALLEST_SHOWN_PX // max(height, width)))
    if largest_px is not None:
        zoom = min(zoom, largest_px / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    canvas = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    shown = {*detections.classes.tolist(), *([] if missed is None else missed.classes.tolist())}
    letters = frozenset(letter for row in shown for letter in names[row] if not letter.isspace())
    font = ImageFont.truetype(font_with(letters), max(11, side // 45))
    if missed is not None:
        for box, row in zip(missed.boxes.tolist(), missed.classes.tolist(), strict=True):
            x0, y0, x1, y1 = (zoom * value for value in box)
            draw.rectangle((x0, y0, x1, y1), outline=MISSED_COLOR, width=1)
            _draw_label(draw, font, f"({names[row]})", x0, y1, MISSED_COLOR)
    line = max(2, side // 250)
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist(), strict=True)
    for box, score, row in reversed(list(rows)):  # the best on top
        x0, y0, x1, y1 = (zoom * value for value in box)
        draw.rectangle((x0, y0, x1, y1), outline=class_color(row), width=line)
        label = f"{names[row]} {score:.2f}" if with_scores else names[row]
        above = _label_height(draw, font, label)
        _draw_label(draw, font, label, x0, y0 - above if y0 > above else y0, class_color(row))
    return canvas


@lru_cache(FONTS_KEPT)
def font_with(letters: frozenset[str]) -> str:
    """The file of a font that has these letters: DejaVu Sans, or else one of this system's; warns if there is none."""
    usual = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    missing = _missing_in(usual, letters)
    for path in sorted(findSystemFonts()) if missing else ():
        if not _missing_in(path, letters):
            return path
    if missing:
        words = "".join(sorted(missing)[:20])
        warn(f"no font of this system has all of {words}; names in pictures have boxes there")
    return usual


def _missing_in(font: str, letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font's file lacks; all, if it cannot be read."""
    try:
        known = FT2Font(font).get_charmap()
    except (RuntimeError, OSError):
        return letters
    return frozenset(letter for letter in letters if ord(letter) not in known)


def _label_height(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, label: str) -> float:
    _, top, _, bottom = draw.textbbox((0, 0), label, font=font)
    return bottom - top + 5


def _draw_label(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    label: str,
    x: float,
    y: float,
    color: tuple[int, int, int],
) -> None:
    """Draw text on a ground of this color, moved to where it is in the picture."""
    left, top, right, _ = draw.textbbox((0, 0), label, font=font)
    height = _label_height(draw, font, label)
    canvas_width, canvas_height = draw.im.size
    x = min(max(0, x), max(0, canvas_width - (right - left) - 4))
    y = min(y, max(0, canvas_height - height))
    draw.rectangle((x, y, x + right - left + 4, y + height), fill=color)
    draw.text((x + 2 - left, y + 2 - top), label, fill="black" if sum(color) > 380 else "white", font=font)


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange images of any size row by row on white, in as many columns at most."""
    columns = min(columns, len(images))
    width = max(image.width for image in images) + 6
    height = max(image.height for image in images) + 6
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(images):
        canvas.paste(image, ((index % columns) * width + 3, (index // columns) * height + 3))
    return canvas


def write_grid(pictures: Sequence[Image.Image], path: Path) -> None:
    """Write a JPEG of pictures row by row, at least one; it appears whole or not at all."""
    with atomic_write(path, "wb") as file:
        grid(pictures, columns=GRID_COLUMNS).save(file, "JPEG", quality=90)
