"""Data sets that share no symbol, background or name with the world: what a trained detector meets at its user's.

Three domains: `shapes` are filled shapes in eight colors, "red octagon", where the color is part of the name; `strokes`
are line drawings, "dashed spiral"; `composites` are objects of several parts, "rocket". Every object has a box.

<root>/<key>/images/{train,val}/*.jpg
<root>/<key>/{train,val}.json          COCO format, with synonyms of some categories
<root>/<key>/val_{synonyms,words}.json the same boxes under synonyms (of classes that have one), and under other words
<root>/<key>/pairs/00000.tar ...       captioned scenes
"""

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from ovd.choices import Domain
from ovd.data.pairs import Pair, write_pair_shards
from ovd.data.world.build import draw_in_parallel, encode_jpeg, write_json
from ovd.data.world.captions import COUNTS, pluralise, with_article
from ovd.data.world.scene import PLACEMENT_TRIES, overlaps, paint, sample_size

_STREAM = {"train": 1, "val": 2, "pairs": 3}
CANVAS_PX = 256
"""Side of the canvas that an object is drawn on before it is scaled."""
MAX_ROTATION_DEG = 15.0
OBJECTS_PER_IMAGE = (1, 6)


@dataclass(frozen=True)
class ForeignSettings:
    """Everything a foreign data set is made of."""

    domain: Domain
    seed: int = 0
    num_train: int = 600
    num_val: int = 300
    num_pairs: int = 300
    image_size_px: int = 192
    object_size_px: tuple[int, int] = (24, 88)
    """Longest side of an object."""

    def key(self) -> str:
        """Hash of all settings, which names the folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ForeignClass:
    """A class of a foreign domain."""

    name: str
    synonyms: tuple[str, ...]
    words: str
    """The name in other words."""
    parts: tuple[str, ...]
    """What it is drawn from: a shape and its color, a stroke and its style, or an object."""


COLORS = {
    "red": (205, 40, 40), "orange": (240, 140, 20), "yellow": (235, 215, 50), "green": (45, 150, 60),
    "blue": (40, 80, 205), "purple": (130, 50, 160), "pink": (240, 150, 190), "brown": (115, 70, 35),
}  # fmt: skip
SHAPES = ("octagon", "ellipse", "semicircle", "trapezoid", "parallelogram", "ring", "teardrop", "wedge")
STROKES = ("zigzag", "spiral", "ripple", "staircase", "comb", "ladder", "lattice", "loop")
STYLES = ("thin", "thick", "dashed")
_WORDS: dict[Domain, str] = {"shapes": "{} colored {}", "strokes": "{} drawn {}", "composites": "toy {}"}
SYNONYMS = {"ellipse": "oval", "ring": "hoop", "wedge": "slice", "lattice": "grid", "ripple": "wavy line",
            "staircase": "steps", "mushroom": "toadstool", "boat": "sailboat", "bin": "trash can"}  # fmt: skip

# Objects as layers of polygons and ellipses on a canvas of side 1: each part is a kind and its numbers.
_COMPOSITES: dict[str, tuple[tuple[str, tuple[float, ...]], ...]] = {
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


def foreign_classes(domain: Domain) -> tuple[ForeignClass, ...]:
    """The classes of a domain: 64 shapes, 24 strokes, 16 composites."""
    named: list[tuple[tuple[str, ...], str]]
    if domain == "shapes":
        named = [((color, shape), f"{color} {shape}") for shape, color in product(SHAPES, COLORS)]
    elif domain == "strokes":
        named = [((style, stroke), f"{style} {stroke}") for stroke, style in product(STROKES, STYLES)]
    else:
        named = [((name,), name) for name in _COMPOSITES]
    classes = []
    for parts, name in named:
        other = SYNONYMS.get(parts[-1])
        synonyms = () if other is None else (" ".join((*parts[:-1], other)),)
        words = _WORDS[domain].format(*reversed(parts))
        classes.append(ForeignClass(name, synonyms, words, parts))
    return tuple(classes)


def build_foreign(root: Path, settings: ForeignSettings) -> Path:
    """Draw the data set if it is not there, and return its folder. Of several processes one draws, the others wait."""
    folder = root / f"{settings.domain}-{settings.key()}"
    marker = folder / ".done"
    if not marker.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not marker.exists():
                _draw(folder, settings)
                marker.touch()
    return folder


def few_images(folder: Path, boxes_per_class: int, seed: int) -> Path:
    """Write a training file of few images, in which every class has at least so many boxes, as far as it has them.

    Images are taken in a random order, each if it has a class that lacks boxes; all boxes of an image stay.

    Returns:
        `train-<boxes_per_class>.json` in the data set's folder.
    """
    content = json.loads((folder / "train.json").read_text())
    classes_of: dict[int, list[int]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        classes_of[row["image_id"]].append(row["category_id"])
    counts: Counter[int] = Counter()
    taken = set()
    for image_id in np.random.default_rng([seed, boxes_per_class]).permutation(sorted(classes_of)).tolist():
        if any(counts[category] < boxes_per_class for category in classes_of[image_id]):
            taken.add(image_id)
            counts.update(classes_of[image_id])
    few = {
        "images": [row for row in content["images"] if row["id"] in taken],
        "annotations": [row for row in content["annotations"] if row["image_id"] in taken],
        "categories": content["categories"],
    }
    path = folder / f"train-{boxes_per_class}.json"
    write_json(path, few)
    return path


def _draw(folder: Path, settings: ForeignSettings) -> None:
    write_json(folder / "settings.json", asdict(settings))
    categories = [
        {"id": row + 1, "name": item.name, "synonyms": list(item.synonyms)}
        for row, item in enumerate(foreign_classes(settings.domain))
    ]
    for part, count in (("train", settings.num_train), ("val", settings.num_val)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        scenes = draw_in_parallel(partial(_scene, part=part, settings=settings), count, f"drawing {part}")
        for index, (encoded, objects) in enumerate(scenes):
            name, side = f"{index + 1:06d}.jpg", settings.image_size_px
            (folder / "images" / part / name).write_bytes(encoded)
            images.append({"id": index + 1, "width": side, "height": side, "file_name": name})
            for row, (x, y, width, height) in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": row + 1,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / f"{part}.json", content)
        if part == "val":
            classes = foreign_classes(settings.domain)
            synonyms = {row + 1: item.synonyms[0] for row, item in enumerate(classes) if item.synonyms}
            write_json(folder / "val_synonyms.json", _renamed(content, synonyms))
            write_json(folder / "val_words.json", _renamed(content, {n + 1: of.words for n, of in enumerate(classes)}))
    write_pair_shards(folder / "pairs", _pairs(settings), pairs_per_shard=settings.num_pairs)


def _renamed(content: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """The annotations of the categories that have another name, under this name."""
    return {
        "images": content["images"],
        "annotations": [row for row in content["annotations"] if row["category_id"] in names],
        "categories": [{"id": identifier, "name": name} for identifier, name in names.items()],
    }


def _pairs(settings: ForeignSettings) -> Iterator[Pair]:
    """Captioned scenes; a caption names all objects."""
    classes = foreign_classes(settings.domain)
    scenes = draw_in_parallel(partial(_scene, part="pairs", settings=settings), settings.num_pairs, "drawing pairs")
    for index, (encoded, objects) in enumerate(scenes):
        phrases = [
            with_article(classes[row].name) if count == 1 else f"{COUNTS[count]} {pluralise(classes[row].name)}"
            for row, count in Counter(row for row, _ in objects).items()
        ]
        yield Pair(key=f"{index:06d}", image=encoded, caption=" and ".join(phrases), info={})


def _scene(index: int, part: str, settings: ForeignSettings) -> tuple[bytes, list[tuple[int, tuple[float, ...]]]]:
    """Draw scene `index` of a part: the JPEG, and class row and xywh box of every object."""
    rng = np.random.default_rng([settings.seed, _STREAM[part], index])
    classes, side = foreign_classes(settings.domain), settings.image_size_px
    image = _BACKGROUNDS[settings.domain](rng, side)
    boxes: list[tuple[float, ...]] = []
    objects: list[tuple[int, tuple[float, ...]]] = []
    for _ in range(int(rng.integers(OBJECTS_PER_IMAGE[0], OBJECTS_PER_IMAGE[1] + 1))):
        row = int(rng.integers(len(classes)))
        size_px = sample_size(rng, settings.object_size_px, 1.2)
        layers, (width, height) = _scaled(_LAYERS[settings.domain](rng, classes[row].parts), size_px, rng)
        for _ in range(PLACEMENT_TRIES):
            x, y = (int(rng.integers(0, side - extent + 1)) for extent in (width, height))
            box = (float(x), float(y), float(x + width), float(y + height))
            if not overlaps(box, boxes):
                break
        else:
            continue
        for coverage, color in layers:
            paint(image, coverage, x, y, color)
        boxes.append(box)
        objects.append((row, (box[0], box[1], float(width), float(height))))
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 4))
    return encode_jpeg(np.clip(image, 0, 255).astype(np.uint8)), objects


def _scaled(
    layers: list[Layer], size_px: float, rng: np.random.Generator
) -> tuple[list[tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "3"]]], tuple[int, int]]:
    """Rotate a little, crop to the ink of all layers, and scale to a longest side; and the width and height."""
    center, angle = (CANVAS_PX / 2, CANVAS_PX / 2), float(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
    turn = cv2.getRotationMatrix2D(center, angle, 0.8)
    turned = [(cv2.warpAffine(mask, turn, (CANVAS_PX, CANVAS_PX)), color) for mask, color in layers]
    ink = np.max([mask for mask, _ in turned], axis=0) > 127
    rows, columns = np.nonzero(ink.any(axis=1))[0], np.nonzero(ink.any(axis=0))[0]
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = ink[window].shape
    scale = size_px / max(height, width)
    size = (max(3, round(width * scale)), max(3, round(height * scale)))
    return [
        (cv2.resize(mask[window], size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255, color)
        for mask, color in turned
    ], size


def _points(*numbers: float) -> np.ndarray:
    return np.rint(np.reshape(numbers, (-1, 2)) * CANVAS_PX).astype(np.int32)


def _blank() -> UInt8[np.ndarray, "S S"]:
    return np.zeros((CANVAS_PX, CANVAS_PX), np.uint8)


def _color(rng: np.random.Generator, rgb: tuple[int, int, int]) -> Float[np.ndarray, "3"]:
    return np.clip(np.array(rgb) + rng.normal(0, 12, 3), 0, 255).astype(np.float32)


def _any_color(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    return rng.uniform(20, 235, 3).astype(np.float32)


def _shape_layers(rng: np.random.Generator, parts: tuple[str, ...]) -> list[Layer]:
    """A dark rim, and the shape in the color of its name."""
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
        case _:
            cv2.ellipse(mask, (int(0.1 * CANVAS_PX), middle), (2 * half, 2 * half), 0, -25, 25, 255, -1)
    rim = cv2.dilate(mask, np.ones((9, 9), np.uint8))
    own = _color(rng, COLORS[color])
    return [(rim, 0.35 * own), (mask, own)]


def _stroke_layers(rng: np.random.Generator, parts: tuple[str, ...]) -> list[Layer]:
    """Lines in one dark or light color."""
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
    """The lines of a stroke, in a square of side 1."""
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
        case _:
            turn = 2 * np.pi * along
            return [np.stack([0.5 + 0.4 * np.sin(turn), 0.5 + 0.25 * np.sin(2 * turn)], axis=1)]


def _composite_layers(rng: np.random.Generator, parts: tuple[str, ...]) -> list[Layer]:
    """The parts of an object, each in a color of its own, with a dark outline around all."""
    layers: list[Layer] = []
    for kind, numbers in _COMPOSITES[parts[0]]:
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
    """Cells around random points, each in a pale color."""
    seeds, (y, x) = rng.uniform(0, side, (14, 2)), np.mgrid[0:side, 0:side]
    nearest = ((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2).argmin(axis=2)
    return rng.uniform(150, 245, (14, 3)).astype(np.float32)[nearest]


def _paper(rng: np.random.Generator, side: int) -> Float[np.ndarray, "S S 3"]:
    """One pale color with a grid of dots."""
    image = np.tile(rng.uniform(170, 250, 3).astype(np.float32), (side, side, 1))
    step = int(rng.integers(9, 17))
    image[step // 2 :: step, step // 2 :: step] -= 60
    return image


def _bark(rng: np.random.Generator, side: int) -> Float[np.ndarray, "S S 3"]:
    """Short lines on a color of middle brightness."""
    image = np.tile(rng.uniform(90, 190, 3).astype(np.float32), (side, side, 1))
    for _ in range(220):
        x, y = rng.integers(0, side, 2)
        dx, dy = rng.integers(-9, 10, 2)
        shade = (image[y, x] + rng.normal(0, 22, 3)).tolist()
        cv2.line(image, (int(x), int(y)), (int(x + dx), int(y + dy)), shade, 1)
    return image


_LAYERS = {"shapes": _shape_layers, "strokes": _stroke_layers, "composites": _composite_layers}
_BACKGROUNDS = {"shapes": _cells, "strokes": _paper, "composites": _bark}
