"""Pictures: boxes with names on an image, and grids of such images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import colormaps, get_data_path
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import nms

from ovd.structures import Detections

SAME_PLACE_IOU = 0.5
SMALLEST_SHOWN_PX = 384


def choose_shown(
    detections: Detections, threshold: float | Sequence[float], *, most: int | None = None, overlapping: bool = False
) -> Detections:
    """Select the detections to draw: those of at least this score, best first, at most `most` of them.

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
    shown = shown[:most]
    return Detections(detections.boxes[shown], detections.scores[shown], detections.classes[shown])


def class_color(row: int) -> tuple[int, int, int]:
    """RGB color of a class row; neighboring rows have distant colors."""
    red, green, blue, _ = colormaps["hsv"]((row * 0.618034) % 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"], detections: Detections, names: Sequence[str], *, with_scores: bool = True
) -> Image.Image:
    """Draw a box, name and score for every detection on a copy of the image, which is enlarged if it is small."""
    zoom = max(1, -(-SMALLEST_SHOWN_PX // max(image.shape[:2])))
    canvas = Image.fromarray(image).resize((image.shape[1] * zoom, image.shape[0] * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), max(11, side // 45))
    width = max(2, side // 250)
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist(), strict=True)
    for box, score, row in reversed(list(rows)):  # the best on top
        x0, y0, x1, y1 = (zoom * value for value in box)
        color = class_color(row)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
        label = f"{names[row]} {score:.2f}" if with_scores else names[row]
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        label_x = min(max(0, x0), max(0, canvas.width - (right - left) - 4))
        label_y = y0 - (bottom - top) - 5 if y0 > (bottom - top) + 5 else y0
        draw.rectangle((label_x, label_y, label_x + right - left + 4, label_y + bottom - top + 5), fill=color)
        light = sum(color) > 380
        draw.text((label_x + 2 - left, label_y + 2 - top), label, fill="black" if light else "white", font=font)
    return canvas


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange images of any size row by row on white."""
    width = max(image.width for image in images) + 6
    height = max(image.height for image in images) + 6
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(images):
        canvas.paste(image, ((index % columns) * width + 3, (index // columns) * height + 3))
    return canvas
