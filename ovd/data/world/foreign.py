"""Data sets that share no symbol, background or name with the world, like the data of a detector's users.

There are three domains: `shapes` are filled shapes in eight colors ("red octagon"), where the color is part of the
name; `strokes` are line drawings ("dashed spiral"); `composites` are objects of several parts ("rocket"). Every object
has a box.

<root>/<key>/images/{train,val}/*.jpg
<root>/<key>/{train,val}.json          COCO format, with synonyms of some categories
<root>/<key>/val_{synonyms,words}.json the boxes of val under synonyms (if the class has one), and under other words
<root>/<key>/pairs/00000.tar ...       captioned scenes
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovd.choices import Domain
from ovd.data.coco_annotation import coco_annotation
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.write import write_pair_shards
from ovd.data.world.build import draw_in_parallel, draw_once, encode_jpeg
from ovd.data.world.captions import COUNTS, pluralize, with_article
from ovd.data.world.foreign_drawing import (
    BACKGROUNDS,
    CANVAS_PX,
    COLORS,
    COMPOSITES,
    LAYERS,
    SHAPES,
    STROKES,
    STYLES,
    Layer,
)  # fmt: skip
from ovd.data.world.scene import PLACEMENT_TRIES, overlaps, paint, sample_size
from ovd.files import short_hash, write_json
from ovd.shapes import Float

_STREAM = {"train": 1, "val": 2, "pairs": 3}
MAX_ROTATION_DEG = 15.0
OBJECTS_PER_IMAGE = (1, 6)


@dataclass(frozen=True)
class ForeignSettings:
    """Settings that determine a foreign data set."""

    domain: Domain
    seed: int = 0
    num_train: int = 600
    num_val: int = 300
    num_pairs: int = 300
    image_size_px: int = 192
    object_size_px: tuple[int, int] = (24, 88)
    """Smallest and largest length of an object's longest side."""

    def key(self) -> str:
        """Return a hash of all settings, which is part of the folder's name."""
        return short_hash(asdict(self))


@dataclass(frozen=True)
class ForeignClass:
    """A class of a foreign domain."""

    name: str
    synonyms: tuple[str, ...]
    words: str
    """Name in other words."""
    parts: tuple[str, ...]
    """Parts that it is drawn from: a color and a shape, a style and a stroke, or an object."""


_WORDS: dict[Domain, str] = {"shapes": "{} colored {}", "strokes": "{} drawn {}", "composites": "toy {}"}
SYNONYMS = {"ellipse": "oval", "ring": "hoop", "wedge": "slice", "lattice": "grid", "ripple": "wavy line",
            "staircase": "steps", "mushroom": "toadstool", "boat": "sailboat", "bin": "trash can"}  # fmt: skip


def foreign_classes(domain: Domain) -> tuple[ForeignClass, ...]:
    """Return the classes of a domain: 64 shapes, 24 strokes, 16 composites."""
    named: list[tuple[tuple[str, ...], str]]
    if domain == "shapes":
        named = [((color, shape), f"{color} {shape}") for shape, color in product(SHAPES, COLORS)]
    elif domain == "strokes":
        named = [((style, stroke), f"{style} {stroke}") for stroke, style in product(STROKES, STYLES)]
    else:
        named = [((name,), name) for name in COMPOSITES]
    classes = []
    for parts, name in named:
        other = SYNONYMS.get(parts[-1])
        synonyms = () if other is None else (" ".join((*parts[:-1], other)),)
        words = _WORDS[domain].format(*reversed(parts))
        classes.append(ForeignClass(name, synonyms, words, parts))
    return tuple(classes)


def build_foreign(root: Path, settings: ForeignSettings) -> Path:
    """Draw the data set if it does not exist, and return its folder; what a killed run left unfinished is drawn again.

    If several processes call this, one draws and the others wait for it.
    """
    folder = root / f"{settings.domain}-{settings.key()}"
    draw_once(folder, ".done", partial(_draw, folder, settings))
    return folder


def few_images(folder: Path, boxes_per_class: int, seed: int) -> Path:
    """Write a training file of few images, with at least `boxes_per_class` boxes of every class if it has that many.

    Images are visited in random order, and taken if they have a class that still lacks boxes; all boxes of a taken
    image stay.

    Returns:
        Path of the file, `train-<boxes_per_class>.json` in the data set's folder.
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
    write_json(path, few, indent=None)
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
            for row, box in objects:
                annotations.append(coco_annotation(len(annotations) + 1, index + 1, row + 1, box))
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / f"{part}.json", content, indent=None)
        if part == "val":
            classes = foreign_classes(settings.domain)
            synonyms = {row + 1: item.synonyms[0] for row, item in enumerate(classes) if item.synonyms}
            write_json(folder / "val_synonyms.json", _renamed(content, synonyms), indent=None)
            words = {row + 1: item.words for row, item in enumerate(classes)}
            write_json(folder / "val_words.json", _renamed(content, words), indent=None)
    shutil.rmtree(folder / "pairs", ignore_errors=True)
    write_pair_shards(folder / "pairs", _pairs(settings), pairs_per_shard=settings.num_pairs)


def _renamed(content: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """Keep the categories that have a name in `names`, under this name, and their annotations."""
    return {
        "images": content["images"],
        "annotations": [row for row in content["annotations"] if row["category_id"] in names],
        "categories": [{"id": identifier, "name": name} for identifier, name in names.items()],
    }


def _pairs(settings: ForeignSettings) -> Iterator[Pair]:
    """Yield captioned scenes; a caption names all objects."""
    classes = foreign_classes(settings.domain)
    scenes = draw_in_parallel(partial(_scene, part="pairs", settings=settings), settings.num_pairs, "drawing pairs")
    for index, (encoded, objects) in enumerate(scenes):
        phrases = [
            with_article(classes[row].name) if count == 1 else f"{COUNTS[count]} {pluralize(classes[row].name)}"
            for row, count in Counter(row for row, _ in objects).items()
        ]
        yield Pair(key=f"{index:06d}", image=encoded, caption=" and ".join(phrases), info={})


def _scene(index: int, part: str, settings: ForeignSettings) -> tuple[bytes, list[tuple[int, tuple[float, ...]]]]:
    """Draw scene `index` of a part, and return its JPEG, and class row and box of every object."""
    rng = np.random.default_rng([settings.seed, _STREAM[part], index])
    classes, side = foreign_classes(settings.domain), settings.image_size_px
    image = BACKGROUNDS[settings.domain](rng, side)
    boxes: list[tuple[float, ...]] = []
    objects: list[tuple[int, tuple[float, ...]]] = []
    for _ in range(int(rng.integers(OBJECTS_PER_IMAGE[0], OBJECTS_PER_IMAGE[1] + 1))):
        row = int(rng.integers(len(classes)))
        size_px = sample_size(rng, settings.object_size_px, 1.2)
        layers, (width, height) = _scaled(LAYERS[settings.domain](rng, classes[row].parts), size_px, rng)
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
        objects.append((row, box))
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 4))
    return encode_jpeg(np.clip(image, 0, 255).astype(np.uint8)), objects


def _scaled(
    layers: list[Layer], size_px: float, rng: np.random.Generator
) -> tuple[list[tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "3"]]], tuple[int, int]]:
    """Rotate layers a little, crop to the ink of all, scale to a longest side; return them with width and height."""
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
