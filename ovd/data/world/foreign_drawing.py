"""Drawing of the objects and backgrounds of the foreign data sets."""

from itertools import pairwise

import cv2
import numpy as np

from ovd.shapes import Float, UInt8

CANVAS_PX = 256
"""Side of the canvas that an object is drawn on before it is scaled."""

COLORS = {
    "red": (205, 40, 40), "orange": (240, 140, 20), "yellow": (235, 215, 50), "green": (45, 150, 60),
    "blue": (40, 80, 205), "purple": (130, 50, 160), "pink": (240, 150, 190), "brown": (115, 70, 35),
}  # fmt: skip
SHAPES = ("octagon", "ellipse", "semicircle", "trapezoid", "parallelogram", "ring", "teardrop", "wedge")
STROKES = ("zigzag", "spiral", "ripple", "staircase", "comb", "ladder", "lattice", "loop")
STYLES = ("thin", "thick", "dashed")

# Objects as layers of polygons and ellipses on a canvas of side 1: each layer is a kind and its coordinates.
COMPOSITES: dict[str, tuple[tuple[str, tuple[float, ...]], ...]] = {
    "boat": (("poly", (0.1, 0.65, 0.9, 0.65, 0.75, 0.9, 0.25, 0.9)), ("poly", (0.48, 0.1, 0.48, 0.6, 0.15, 0.6))),
    "mushroom": (("rect", (0.4, 0.5, 0.6, 0.92)), ("half", (0.5, 0.52, 0.42, 0.4))),
    "lamp": (("rect", (0.46, 0.45, 0.54, 0.85)), ("poly", (0.35, 0.1, 0.65, 0.1, 0.85, 0.5, 0.15, 0.5)),
             ("oval", (0.5, 0.87, 0.25, 0.07))),
    "rocket": (("poly", (0.3, 0.6, 0.12, 0.9, 0.88, 0.9, 0.7, 0.6)), ("oval", (0.5, 0.5, 0.2, 0.42)),
               ("oval", (0.5, 0.4, 0.08, 0.08))),
    "fish": (("poly", (0.7, 0.5, 0.95, 0.25, 0.95, 0.75)), ("oval", (0.42, 0.5, 0.36, 0.22)),
             ("oval", (0.22, 0.45, 0.04, 0.04))),
    "bottle": (("rect", (0.42, 0.05, 0.58, 0.35)), ("rect", (0.3, 0.35, 0.7, 0.95)), ("rect", (0.3, 0.55, 0.7, 0.75))),
    "pine tree": (("rect", (0.44, 0.7, 0.56, 0.95)), ("poly", (0.5, 0.3, 0.85, 0.75, 0.15, 0.75)),
                  ("poly", (0.5, 0.05, 0.75, 0.45, 0.25, 0.45))),
    "table": (("rect", (0.15, 0.4, 0.25, 0.9)), ("rect", (0.75, 0.4, 0.85, 0.9)), ("rect", (0.05, 0.3, 0.95, 0.42))),
    "chair": (("rect", (0.22, 0.08, 0.32, 0.92)), ("rect", (0.68, 0.5, 0.78, 0.92)), ("rect", (0.22, 0.48, 0.78, 0.6))),
    "top hat": (("rect", (0.28, 0.15, 0.72, 0.72)), ("rect", (0.28, 0.55, 0.72, 0.66)),
                ("oval", (0.5, 0.75, 0.45, 0.1))),
    "tent": (("poly", (0.5, 0.15, 0.95, 0.85, 0.05, 0.85)), ("poly", (0.5, 0.45, 0.65, 0.85, 0.35, 0.85))),
    "spoon": (("rect", (0.47, 0.4, 0.53, 0.95)), ("oval", (0.5, 0.24, 0.15, 0.2))),
    "snail": (("poly", (0.08, 0.85, 0.9, 0.85, 0.95, 0.45, 0.82, 0.72)), ("oval", (0.45, 0.52, 0.3, 0.3)),
              ("oval", (0.45, 0.52, 0.15, 0.15))),
    "caterpillar": tuple(("oval", (0.14 + 0.18 * part, 0.55 - 0.07 * (part % 2), 0.13, 0.13)) for part in range(5)),
    "truck": (("rect", (0.05, 0.3, 0.6, 0.7)), ("rect", (0.62, 0.45, 0.95, 0.7)), ("oval", (0.25, 0.74, 0.1, 0.1)),
              ("oval", (0.75, 0.74, 0.1, 0.1))),
    "bin": (("poly", (0.22, 0.3, 0.78, 0.3, 0.7, 0.92, 0.3, 0.92)), ("rect", (0.15, 0.18, 0.85, 0.28))),
}  # fmt: skip

Layer = tuple[UInt8[np.ndarray, "S S"], Float[np.ndarray, "3"]]


def _points(*numbers: float) -> np.ndarray:
    return np.rint(np.reshape(numbers, (-1, 2)) * CANVAS_PX).astype(np.int32)


def _blank() -> UInt8[np.ndarray, "S S"]:
    return np.zeros((CANVAS_PX, CANVAS_PX), np.uint8)


def _color(rng: np.random.Generator, rgb: tuple[int, int, int]) -> Float[np.ndarray, "3"]:
    return np.clip(np.array(rgb) + rng.normal(0, 12, 3), 0, 255).astype(np.float32)


def _any_color(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    return rng.uniform(20, 235, 3).astype(np.float32)


def _shape_layers(rng: np.random.Generator, parts: tuple[str, ...]) -> list[Layer]:
    """Draw a dark rim, and the shape in the color of its name."""
    color, shape = parts
    mask = _blank()
    middle, half = CANVAS_PX // 2, int(0.42 * CANVAS_PX)
    match shape:
        case "octagon":
            turns = (np.arange(8) + 0.5) * np.pi / 4
            cv2.fillPoly(mask, [_points(*(0.5 + 0.42 * np.stack([np.cos(turns), np.sin(turns)], 1)).ravel())], 255)
        case "ellipse":
            cv2.ellipse(mask, (middle, middle), (half, half // 2), 0, 0, 360, 255, -1)
        case "semicircle":
            cv2.ellipse(mask, (middle, int(0.7 * CANVAS_PX)), (half, half), 0, 180, 360, 255, -1)
        case "trapezoid":
            cv2.fillPoly(mask, [_points(0.3, 0.25, 0.7, 0.25, 0.92, 0.75, 0.08, 0.75)], 255)
        case "parallelogram":
            cv2.fillPoly(mask, [_points(0.3, 0.3, 0.95, 0.3, 0.7, 0.7, 0.05, 0.7)], 255)
        case "ring":
            cv2.circle(mask, (middle, middle), int(0.33 * CANVAS_PX), 255, int(0.16 * CANVAS_PX))
        case "teardrop":
            cv2.circle(mask, (middle, int(0.64 * CANVAS_PX)), int(0.27 * CANVAS_PX), 255, -1)
            cv2.fillPoly(mask, [_points(0.5, 0.06, 0.755, 0.55, 0.245, 0.55)], 255)
        case "wedge":
            cv2.ellipse(mask, (int(0.1 * CANVAS_PX), middle), (2 * half, 2 * half), 0, -25, 25, 255, -1)
        case _:
            raise ValueError(f"unknown shape {shape!r}")
    rim = cv2.dilate(mask, np.ones((9, 9), np.uint8))
    own = _color(rng, COLORS[color])
    return [(rim, 0.35 * own), (mask, own)]


def _stroke_layers(rng: np.random.Generator, parts: tuple[str, ...]) -> list[Layer]:
    """Draw lines in one dark or light color."""
    style, stroke = parts
    thickness = {"thin": 7, "thick": 24, "dashed": 14}[style]
    mask = _blank()
    for line in _lines(stroke):
        points = np.rint(line * CANVAS_PX).astype(np.int32)
        if style == "dashed":
            dense = np.concatenate([np.linspace(a, b, 24) for a, b in pairwise(line)])
            steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
            for first, last, at in zip(dense[:-1], dense[1:], steps, strict=False):
                if at % 0.14 < 0.08:
                    ends = np.rint(np.stack([first, last]) * CANVAS_PX).astype(np.int32)
                    cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 255, thickness)
        else:
            cv2.polylines(mask, [points], False, 255, thickness, cv2.LINE_AA)
    dark = rng.random() < 0.7
    return [(mask, rng.uniform(0, 90, 3).astype(np.float32) if dark else _any_color(rng))]


def _lines(stroke: str) -> list[Float[np.ndarray, "N 2"]]:
    """Return the lines of a stroke, in a square of side 1."""
    along = np.linspace(0, 1, 60)
    match stroke:
        case "zigzag":
            return [np.stack([np.linspace(0.08, 0.92, 7), 0.5 + 0.25 * (-1) ** np.arange(7)], axis=1)]
        case "spiral":
            turn, radius = 5.5 * np.pi * along, 0.4 * along
            return [np.stack([0.5 + radius * np.cos(turn), 0.5 + radius * np.sin(turn)], axis=1)]
        case "ripple":
            return [np.stack([0.08 + 0.84 * along, 0.5 + 0.16 * np.sin(4 * np.pi * along)], axis=1)]
        case "staircase":
            corners = np.repeat(np.linspace(0.1, 0.9, 6), 2)
            return [np.stack([corners[:-1], 1 - corners[1:]], axis=1)]
        case "comb":
            teeth = [np.array([[x, 0.3], [x, 0.8]]) for x in np.linspace(0.1, 0.9, 6)]
            return [np.array([[0.1, 0.3], [0.9, 0.3]]), *teeth]
        case "ladder":
            rungs = [np.array([[0.32, y], [0.68, y]]) for y in np.linspace(0.2, 0.8, 4)]
            return [np.array([[0.32, 0.08], [0.32, 0.92]]), np.array([[0.68, 0.08], [0.68, 0.92]]), *rungs]
        case "lattice":
            ends = np.linspace(0.15, 0.85, 4)
            return [np.array([[0.1, y], [0.9, y]]) for y in ends] + [np.array([[x, 0.1], [x, 0.9]]) for x in ends]
        case "loop":
            turn = 2 * np.pi * along
            return [np.stack([0.5 + 0.4 * np.sin(turn), 0.5 + 0.25 * np.sin(2 * turn)], axis=1)]
        case _:
            raise ValueError(f"unknown stroke {stroke!r}")


def _composite_layers(rng: np.random.Generator, parts: tuple[str, ...]) -> list[Layer]:
    """Draw the parts of an object, each in a color of its own, with a dark outline around all."""
    layers: list[Layer] = []
    for kind, numbers in COMPOSITES[parts[0]]:
        mask = _blank()
        if kind == "poly":
            cv2.fillPoly(mask, [_points(*numbers)], 255)
        elif kind == "rect":
            (x0, y0), (x1, y1) = _points(*numbers).tolist()
            cv2.rectangle(mask, (x0, y0), (x1, y1), 255, -1)
        else:
            (x, y), (half_width, half_height) = _points(*numbers).tolist()
            first = 180 if kind == "half" else 0
            cv2.ellipse(mask, (x, y), (half_width, half_height), 0, first, 360, 255, -1)
        layers.append((mask, _any_color(rng)))
    outline = cv2.dilate(np.max([mask for mask, _ in layers], axis=0), np.ones((7, 7), np.uint8))
    return [(outline, np.full(3, 25, np.float32)), *layers]


def _cells(rng: np.random.Generator, side: int) -> Float[np.ndarray, "S S 3"]:
    """Draw cells around random points, each in a pale color."""
    seeds, (y, x) = rng.uniform(0, side, (14, 2)), np.mgrid[0:side, 0:side]
    nearest = ((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2).argmin(axis=2)
    return rng.uniform(150, 245, (14, 3)).astype(np.float32)[nearest]


def _paper(rng: np.random.Generator, side: int) -> Float[np.ndarray, "S S 3"]:
    """Draw one pale color with a grid of dots."""
    image = np.tile(rng.uniform(170, 250, 3).astype(np.float32), (side, side, 1))
    step = int(rng.integers(9, 17))
    image[step // 2 :: step, step // 2 :: step] -= 60
    return image


def _bark(rng: np.random.Generator, side: int) -> Float[np.ndarray, "S S 3"]:
    """Draw short lines on a color of medium brightness."""
    image = np.tile(rng.uniform(90, 190, 3).astype(np.float32), (side, side, 1))
    for _ in range(220):
        x, y = rng.integers(0, side, 2)
        dx, dy = rng.integers(-9, 10, 2)
        shade = (image[y, x] + rng.normal(0, 22, 3)).tolist()
        cv2.line(image, (int(x), int(y)), (int(x + dx), int(y + dy)), shade, 1)
    return image


LAYERS = {"shapes": _shape_layers, "strokes": _stroke_layers, "composites": _composite_layers}
BACKGROUNDS = {"shapes": _cells, "strokes": _paper, "composites": _bark}
