"""Drawing of one scene: background, distractors, objects, and the box of each object's visible part."""

from dataclasses import dataclass

import cv2
import numpy as np

from ovd.data.world.glyphs import load_glyphs, mask_for_size
from ovd.data.world.settings import Style
from ovd.shapes import Float, UInt8

COLORS = {
    "red": (205, 40, 40), "orange": (235, 135, 30), "yellow": (235, 215, 50), "green": (45, 150, 60),
    "cyan": (50, 195, 205), "blue": (45, 75, 200), "purple": (130, 55, 170), "pink": (240, 135, 180),
    "brown": (120, 75, 40), "white": (245, 245, 245), "gray": (128, 128, 128), "black": (20, 20, 20),
}  # fmt: skip
DISTRACTOR_LETTERS = "BDFGHJKQRWZ245679"
MAX_ROTATION_DEG = 20.0
MIN_LUMINANCE_CONTRAST = 70.0
MAX_OVERLAP = 0.12
PLACEMENT_TRIES = 30


@dataclass(frozen=True)
class DrawnObject:
    """An object as drawn in a scene."""

    glyph: int
    box: tuple[float, float, float, float]
    """Box as xyxy in pixels, tight around the visible ink."""
    color: str


@dataclass(frozen=True)
class Scene:
    image: UInt8[np.ndarray, "H W 3"]
    objects: tuple[DrawnObject, ...]
    """Drawn objects in the given order, without those for which there was no room."""


def luminance(color: np.ndarray) -> float:
    """Compute the Rec. 601 luma of an RGB color."""
    return float(color @ np.array([0.299, 0.587, 0.114]))


def draw_background(rng: np.random.Generator, size: int, style: Style) -> Float[np.ndarray, "H W 3"]:
    """Draw smooth color noise in three octaves around a random color, optionally with a pattern over it."""
    base = rng.uniform(30, 225, 3)
    image = np.broadcast_to(base, (size, size, 3)).astype(np.float32)
    for cells, amplitude in ((3, 26.0), (8, 14.0), (24, 9.0)):
        grid = rng.normal(0, amplitude, (cells, cells, 3)).astype(np.float32)
        image = image + cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    if style.background == "patterns" and rng.random() < 0.7:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(10, 40)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
        if rng.random() < 0.5:  # checks
            wave = np.sign(wave * np.sin((y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)))
        image = image + wave[..., None] * rng.normal(0, 14, 3).astype(np.float32)
    return image


def contrasting_color(rng: np.random.Generator, background: float) -> tuple[str, np.ndarray]:
    """Draw a named color, jittered, whose luminance contrasts with that of the background."""
    names = [n for n, rgb in COLORS.items() if abs(luminance(np.array(rgb)) - background) >= MIN_LUMINANCE_CONTRAST]
    name = names[rng.integers(len(names))]
    return name, np.clip(np.array(COLORS[name]) + rng.normal(0, 10, 3), 0, 255).astype(np.float32)


def warp_mask(
    rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], size_px: float, style: Style
) -> Float[np.ndarray, "H W"]:
    """Rotate, stretch and (by style) foreshorten a mask so that its ink's longest side is about `size_px`.

    Returns:
        The coverage 0..1, cropped to the ink.
    """
    height, width = mask.shape
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
    cos, sin = np.cos(angle), np.sin(angle)
    half = np.array([[-width, -height], [width, -height], [width, height], [-width, height]], np.float32) / 2
    corners = half * np.array([stretch**0.5, stretch**-0.5], np.float32)
    corners = corners @ np.array([[cos, sin], [-sin, cos]], np.float32)
    if style.perspective:
        corners = corners + rng.uniform(-style.perspective, style.perspective, (4, 2)).astype(np.float32) * width
    extent = corners.max(0) - corners.min(0)
    corners = (corners - corners.min(0)) * (size_px / extent.max()) + 1.0
    side = int(np.ceil(size_px)) + 2
    transform = cv2.getPerspectiveTransform(
        (half + np.array([width, height]) / 2).astype(np.float32), corners.astype(np.float32)
    )
    warped = cv2.warpPerspective(mask, transform, (side, side), flags=cv2.INTER_LINEAR)
    rows, columns = np.nonzero(warped.max(1) > 40)[0], np.nonzero(warped.max(0) > 40)[0]
    if len(rows) == 0:
        return np.zeros((0, 0), np.float32)
    return warped[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255.0


def paint(image: np.ndarray, coverage: np.ndarray, x: int, y: int, color: np.ndarray) -> None:
    """Blend a color (3,) or texture (h, w, 3) into the image, in place, clipped at the image's border."""
    height, width = coverage.shape
    y0, x0 = max(0, -y), max(0, -x)
    y1, x1 = min(height, image.shape[0] - y), min(width, image.shape[1] - x)
    if y1 <= y0 or x1 <= x0:
        return
    region = image[y + y0 : y + y1, x + x0 : x + x1]
    alpha = coverage[y0:y1, x0:x1, None]
    paint_color = color[y0:y1, x0:x1] if color.ndim == 3 else color
    region += alpha * (paint_color - region)


def texture(rng: np.random.Generator, color: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the plain color (3,), or a gradient or stripes of it (height, width, 3)."""
    kind = rng.random()
    if kind < 0.6:
        return color
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / max(height, width)
    shade = (along - along.mean()) * 60 if kind < 0.85 else 18 * np.sin(along * rng.uniform(12, 30))
    return np.clip(color + shade[..., None], 0, 255).astype(np.float32)


def draw_distractor(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a scribble, a blob or a letter in a muted color."""
    size = image.shape[0]
    x, y = rng.integers(0, size, 2)
    local = image[max(0, y - 8) : y + 8, max(0, x - 8) : x + 8].mean((0, 1))
    color = np.clip(local + rng.normal(0, 45, 3), 0, 255).astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        points = np.cumsum(rng.normal(0, size / 16, (6, 2)), 0) + np.array([x, y])
        layer = np.zeros(image.shape[:2], np.uint8)
        cv2.polylines(layer, [points.astype(np.int32)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
        paint(image, layer.astype(np.float32) / 255, 0, 0, color)
    elif kind == 1:
        layer = np.zeros(image.shape[:2], np.uint8)
        axes = (int(rng.integers(4, size // 8)), int(rng.integers(4, size // 8)))
        cv2.ellipse(layer, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        paint(image, layer.astype(np.float32) / 255, 0, 0, color)
    else:
        letter = DISTRACTOR_LETTERS[rng.integers(len(DISTRACTOR_LETTERS))]
        coverage = warp_mask(rng, mask_for_size(letter, 40), float(rng.uniform(16, 40)), Style())
        paint(image, coverage * 0.8, int(x), int(y), color)


def overlaps(box: tuple[float, ...], others: list[tuple[float, ...]]) -> bool:
    """Return whether the intersection with any other box exceeds `MAX_OVERLAP` of the smaller box's area."""
    x0, y0, x1, y1 = box
    for a0, b0, a1, b1 in others:
        intersection = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
        if intersection > MAX_OVERLAP * min((x1 - x0) * (y1 - y0), (a1 - a0) * (b1 - b0)):
            return True
    return False


def sample_size(rng: np.random.Generator, limits: tuple[int, int], skew: float) -> float:
    """Draw a longest side in pixels, log-uniform between the limits, shifted towards small objects by `skew` > 1."""
    low, high = np.log(limits[0]), np.log(limits[1])
    return float(np.exp(low + (high - low) * rng.random() ** skew))


def draw_scene(
    rng: np.random.Generator,
    glyphs: list[int],
    *,
    size_px: int,
    object_sizes_px: list[float],
    num_distractors: int,
    style: Style,
    centered: bool = False,
) -> Scene:
    """Draw the glyphs, in this order, at the given longest sides.

    An object for which no free place is found in 30 tries is left out. `centered` puts every object in the middle, for
    a scene of one.
    """
    table = load_glyphs()
    image = draw_background(rng, size_px, style)
    for _ in range(num_distractors):
        draw_distractor(rng, image)
    objects: list[DrawnObject] = []
    for glyph, wanted_px in zip(glyphs, object_sizes_px, strict=True):
        coverage = warp_mask(rng, mask_for_size(table[glyph].character, wanted_px), wanted_px, style)
        height, width = coverage.shape
        if min(height, width) < 3:
            continue
        for _ in range(PLACEMENT_TRIES):
            x = (size_px - width) // 2 if centered else int(rng.integers(0, max(1, size_px - width + 1)))
            y = (size_px - height) // 2 if centered else int(rng.integers(0, max(1, size_px - height + 1)))
            box = (float(x), float(y), float(min(x + width, size_px)), float(min(y + height, size_px)))
            if not overlaps(box, [other.box for other in objects]):
                break
        else:
            continue
        around = image[max(0, y) : y + height, max(0, x) : x + width].mean((0, 1))
        color_name, color = contrasting_color(rng, luminance(around))
        if rng.random() < style.shadow_probability:
            offset = max(1, int(0.06 * max(height, width)))
            soft = cv2.GaussianBlur(np.pad(coverage, offset), (0, 0), offset / 2)
            paint(image, 0.6 * soft, x, y, np.zeros(3, np.float32))
        if rng.random() < style.outline_probability:
            grown = cv2.dilate(np.pad(coverage, 1), np.ones((3, 3), np.uint8))
            paint(image, grown, x - 1, y - 1, contrasting_color(rng, luminance(color))[1])
        paint(image, coverage, x, y, texture(rng, color, height, width))
        objects.append(DrawnObject(glyph, box, color_name))
    if rng.random() < style.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 0.9)))
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + noise * np.float32(rng.uniform(0, style.noise_std))
    return Scene(np.clip(image, 0, 255).astype(np.uint8), tuple(objects))
