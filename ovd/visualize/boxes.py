"""Drawing of boxes with names on images, and of grids of such images."""

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import nms

from ovd.files import atomic_write
from ovd.structures import Detections
from ovd.visualize.labels import BLACK, WHITE, Box, Label, draw_labels, find_font_for
from ovd.visualize.palette import class_color

SAME_PLACE_IOU = 0.5
SMALLEST_SHOWN_PX = 384
SMALLEST_TEXT_PX = 14
GRID_PX = 512
"""Longest side of an image in a grid."""
GRID_TEXT_PX = 21
"""Font size of names in a grid, large enough to read where the grid is as wide as a page."""
GRID_COLUMNS = 4
GRID_GAP_PX = 6

RARE_COLOR = (255, 214, 0)
RARE_MARK = "\N{BLACK STAR}"
LEGEND = "colored: detections, right or wrong; white, in parentheses: missed objects"
"""Legend of a picture with missed objects."""
LEGEND_WITH_RARE = (
    f"{RARE_MARK} and yellow: rare classes; other colors: other classes, right or wrong; "
    "white, in parentheses: missed objects"
)
"""Legend of a picture with missed objects in which rare classes are marked."""


def choose_shown(
    detections: Detections, threshold: float | Sequence[float], *, limit: int | None = None, overlapping: bool = False
) -> Detections:
    """Select the detections to draw: those with a score of at least the threshold, best first, at most `limit` of them.

    Unless `overlapping`, class-agnostic NMS (IoU 0.5) keeps only the best detection at each place: metrics count the
    scores of all classes for a box, but a picture should show one.

    Args:
        threshold: one threshold for all classes, or one per class.
    """
    minimum = torch.as_tensor(threshold, dtype=detections.scores.dtype)
    wanted = detections.scores >= (minimum if minimum.ndim == 0 else minimum[detections.classes])
    shown = wanted.nonzero().flatten()
    if not overlapping:
        shown = shown[nms(detections.boxes[shown], detections.scores[shown], SAME_PLACE_IOU)]
    shown = shown[:limit]
    return detections.take(shown)


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"],
    detections: Detections,
    names: Sequence[str] | Mapping[int, str],
    *,
    with_scores: bool = True,
    missed: Detections | None = None,
    rare: Collection[int] = (),
    in_grid: bool = False,
) -> Image.Image:
    """Draw a box, name and score for every detection on a copy of the image, enlarged if it is small.

    A class has the same color in every picture.

    Args:
        names: the name of each class that occurs.
        missed: true objects without a right detection. They get a thin white box, and their name in parentheses.
        rare: classes whose labels are yellow with a star, and whose boxes are thicker.
        in_grid: whether the picture is for `write_grid`: it gets a longest side of `GRID_PX` and large letters.
    """
    longest = max(image.shape[:2])
    zoom = GRID_PX / longest if in_grid else max(1, -(-SMALLEST_SHOWN_PX // longest))
    height, width = (max(1, round(zoom * side)) for side in image.shape[:2])
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    text_px = GRID_TEXT_PX if in_grid else max(SMALLEST_TEXT_PX, max(canvas.size) // 45)
    line = 3 if in_grid else max(2, max(canvas.size) // 250)
    draw = ImageDraw.Draw(canvas)
    labels = []
    for box, score, row in _rows(detections, zoom, canvas):
        text = f"{names[row]} {score:.2f}" if with_scores else names[row]
        if row in rare:
            labels.append(Label(f"{RARE_MARK} {text}", box, RARE_COLOR, BLACK))
        else:
            labels.append(Label(text, box, class_color(names[row]), WHITE))
    hidden = [
        Label(f"({RARE_MARK} {names[row]})" if row in rare else f"({names[row]})", box, WHITE, BLACK, below=True)
        for box, _, row in _rows(Detections.empty() if missed is None else missed, zoom, canvas)
    ]
    for label in hidden:
        _draw_box(draw, label, 1)
    for label in reversed(labels):  # the best on top
        _draw_box(draw, label, 2 * line - 1 if label.background == RARE_COLOR else line)
    draw_labels(canvas, [*labels, *hidden], text_px)
    return canvas


def _rows(detections: Detections, zoom: float, canvas: Image.Image) -> Iterator[tuple[Box, float, int]]:
    """Yield the box in pixels of the picture, the score and the class of each detection.

    Sides far outside the picture are moved nearer, where they are not visible either, since Pillow takes time for each
    pixel of a line.
    """
    longest = max(canvas.size)
    columns = ((zoom * detections.boxes).clamp(-longest, 2 * longest), detections.scores, detections.classes)
    for box, score, row in zip(*(column.tolist() for column in columns), strict=True):
        yield tuple(box), score, row


def _draw_box(draw: ImageDraw.ImageDraw, label: Label, line: int) -> None:
    """Draw the frame of a label's box in its color, with an edge on both sides so that it is visible on any ground."""
    x0, y0, x1, y1 = label.box
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=label.foreground, width=line + 2)
    draw.rectangle(label.box, outline=label.background, width=line)


def grid(images: Sequence[Image.Image], columns: int, note: str = "") -> Image.Image:
    """Arrange images of any size row by row on white, in at most `columns` columns, with a note below."""
    columns = min(columns, len(images))
    width = max(image.width for image in images) + GRID_GAP_PX
    height = max(image.height for image in images) + GRID_GAP_PX
    rows = -(-len(images) // columns)
    lines = textwrap.wrap(note, max(1, columns * width // round(0.6 * GRID_TEXT_PX)))
    line_px = round(1.4 * GRID_TEXT_PX)
    canvas = Image.new("RGB", (columns * width, rows * height + len(lines) * line_px), "white")
    for index, image in enumerate(images):
        left, top = index % columns * width, index // columns * height
        canvas.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
    file, draw = find_font_for(lines), ImageDraw.Draw(canvas)
    font = ImageFont.truetype(file.path, GRID_TEXT_PX)
    for number, words in enumerate(lines):
        draw.text((GRID_GAP_PX, rows * height + number * line_px), file.replace_missing(words), "black", font=font)
    return canvas


def write_grid(pictures: Sequence[Image.Image], path: Path, note: str = "") -> None:
    """Write a grid of at least one picture, as PNG if the path ends in .png, else as JPEG.

    The file appears whole or not at all.
    """
    drawn = grid(pictures, GRID_COLUMNS, note)
    with atomic_write(path, "wb") as file:
        drawn.save(file, "PNG" if path.suffix == ".png" else "JPEG", quality=90, optimize=True)
