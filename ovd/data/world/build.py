"""Generation of the world's parts on disk, each once, in a folder named by the hash of the settings.

<root>/<key>/settings.json
<root>/<key>/images/{train,val,coco,objects365}/*.jpg
<root>/<key>/annotations/lvis_{train,val}.json, hidden_{train,val}.json, coco.json, objects365.json
<root>/<key>/{pairs,pretraining_pairs}/00000.tar ..., manifest.json
"""

import io
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovd.data.coco_annotation import coco_annotation
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.write import write_pair_shards
from ovd.data.world.captions import caption
from ovd.data.world.glyphs import load_glyphs
from ovd.data.world.layout import Layout, annotate, deal, long_tailed_counts
from ovd.data.world.scene import DrawnObject, Scene, draw_scene, sample_size
from ovd.data.world.settings import Settings, Style
from ovd.files import LOCK, lock_file, write_json
from ovd.progress import progress
from ovd.threads import num_cores

TRANSFER_PARTS = ("coco", "objects365")
PARTS = ("train", "val", "pairs", "pretraining_pairs", *TRANSFER_PARTS)
_STREAM = {"layout": 0, **{part: index + 1 for index, part in enumerate(PARTS)}}
JPEG_QUALITY = 90
FEW_SCENES = 100


def generator(settings: Settings, stream: str, index: int = 0) -> np.random.Generator:
    """Return the random generator of a part or scene; streams are disjoint, so that the drawing order is free."""
    return np.random.default_rng([settings.seed, _STREAM[stream], index])


def encode_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def train_counts(settings: Settings) -> np.ndarray:
    """Return the number of objects per class in train, which decides which classes are rare."""
    return long_tailed_counts(generator(settings, "layout"), len(load_glyphs()), settings.max_images_per_class)


def detection_scene(
    index: int, glyphs: tuple[int, ...], part: str, style: Style, settings: Settings
) -> tuple[Scene, bytes]:
    """Draw and encode scene `index` of a detection set."""
    rng = generator(settings, part, index + 1)
    sizes = [sample_size(rng, settings.object_size_px, settings.size_skew) for _ in glyphs]
    scene = draw_scene(
        rng,
        list(glyphs),
        size_px=settings.image_size_px,
        object_sizes_px=sizes,
        num_distractors=int(rng.integers(settings.distractors_per_image[0], settings.distractors_per_image[1] + 1)),
        style=style,
    )
    return scene, encode_jpeg(scene.image)


def pair_scene(index: int, part: str, settings: Settings) -> Pair:
    """Draw and describe pair `index`; its boxes go into `info`, to evaluate pseudo-labels, never for training."""
    rng = generator(settings, part, index + 1)
    small = part == "pretraining_pairs"
    weights = np.asarray(settings.pretraining_objects_per_image if small else settings.objects_per_image)
    limits = settings.pretraining_object_size_px if small else settings.object_size_px
    skew = settings.pretraining_size_skew if small else settings.size_skew
    count = int(rng.choice(len(weights), p=weights / weights.sum())) + 1
    glyphs = [int(glyph) for glyph in rng.integers(0, len(load_glyphs()), count)]
    scene = draw_scene(
        rng,
        glyphs,
        size_px=settings.pretraining_image_size_px if small else settings.image_size_px,
        object_sizes_px=[sample_size(rng, limits, skew) for _ in glyphs],
        num_distractors=int(rng.integers(settings.distractors_per_image[0], settings.distractors_per_image[1] + 1)),
        style=settings.train_style,
    )
    names = load_glyphs()
    info = {"boxes": [item.box for item in scene.objects], "names": [names[item.glyph].name for item in scene.objects]}
    text = caption(rng, scene.objects, settings)
    return Pair(key=f"{index:06d}", image=encode_jpeg(scene.image), caption=text, info=info)


def draw_in_parallel(function, count: int, description: str) -> Iterator:
    """Yield `function(0), function(1), ...` in order, computed on all cores with a progress bar.

    Up to `FEW_SCENES` are computed in this process alone.
    """
    if count <= FEW_SCENES:  # faster than starting other processes
        yield from map(function, range(count))
        return
    with multiprocessing.get_context("spawn").Pool(num_cores(), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from progress(pool.imap(function, range(count), chunksize=32), count, description)


def _objects_and_jpeg(
    index: int, layout: Layout, part: str, style: Style, settings: Settings
) -> tuple[tuple[DrawnObject, ...], bytes]:
    scene, encoded = detection_scene(index, layout[index], part, style, settings)
    return scene.objects, encoded


def draw_detection_set(folder: Path, layout: Layout, part: str, style: Style, settings: Settings) -> list[tuple]:
    """Write the JPEG of every scene into `folder`, and return the drawn objects of every scene."""
    folder.mkdir(parents=True)
    drawn = []
    draw = partial(_objects_and_jpeg, layout=layout, part=part, style=style, settings=settings)
    for index, (objects, encoded) in enumerate(draw_in_parallel(draw, len(layout), f"drawing {part}")):
        (folder / f"{index + 1:012d}.jpg").write_bytes(encoded)
        drawn.append(objects)
    return drawn


def annotation(identifier: int, image_id: int, category_id: int, box: tuple[float, float, float, float]) -> dict:
    x0, y0, x1, y1 = box
    return {
        "id": identifier,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
    }


def write_lvis_part(folder: Path, part: str, settings: Settings) -> None:
    """Write `train` or `val` in LVIS v1 format: coco_url, frequency by train image count, federated annotations."""
    glyphs = load_glyphs()
    counts = train_counts(settings)
    if part == "val":
        counts = np.full_like(counts, settings.val_boxes_per_class)
    layout = deal(generator(settings, part), counts, settings.objects_per_image)
    drawn = draw_detection_set(folder / "images" / part, layout, part, settings.train_style, settings)

    remaining = np.bincount([item.glyph for objects in drawn for item in objects], minlength=len(glyphs))
    at_least = 15 if part == "val" else 1
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    hidden: list[dict[str, Any]] = []
    images_of_class: Counter[int] = Counter()
    boxes_of_class: Counter[int] = Counter()
    for index, objects in enumerate(drawn):
        rng = generator(settings, part, len(drawn) + 1 + index)
        seen = annotate(rng, tuple(item.glyph for item in objects), remaining, at_least, settings)
        images.append(
            {
                "id": index + 1,
                "width": settings.image_size_px,
                "height": settings.image_size_px,
                "coco_url": f"http://localhost/{part}/{index + 1:012d}.jpg",
                "neg_category_ids": [glyph + 1 for glyph in seen.negatives],
                "not_exhaustive_category_ids": [glyph + 1 for glyph in seen.not_exhaustive],
            }
        )
        for item, shown in zip(objects, seen.shown, strict=True):
            rows = annotations if shown else hidden
            rows.append(annotation(len(rows) + 1, index + 1, item.glyph + 1, item.box))
        shown_glyphs = [item.glyph for item, shown in zip(objects, seen.shown, strict=True) if shown]
        boxes_of_class.update(shown_glyphs)
        images_of_class.update(set(shown_glyphs))

    frequencies = {}
    if part == "val":  # the frequency of a class is a property of train
        train = json.loads((folder / "annotations" / "lvis_train.json").read_text())
        frequencies = {row["id"]: row["frequency"] for row in train["categories"]}
    categories = []
    for index, glyph in enumerate(glyphs):
        num_images = images_of_class[index]
        name = glyph.name.replace(" ", "_")
        categories.append(
            {
                "id": index + 1,
                "name": name,
                "synonyms": [name, *(synonym.replace(" ", "_") for synonym in glyph.synonyms)],
                "def": f"the pictograph of {glyph.name}",
                "frequency": frequencies.get(index + 1, "r" if num_images <= 10 else "c" if num_images <= 100 else "f"),
                "image_count": num_images,
                "instance_count": boxes_of_class[index],
            }
        )
    info = {"description": "ovd world"}
    known = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations" / f"lvis_{part}.json", known, indent=None)
    unknown = {"annotations": hidden, "categories": categories}
    write_json(folder / "annotations" / f"hidden_{part}.json", unknown, indent=None)


def write_transfer_part(folder: Path, part: str, settings: Settings) -> None:
    """Write `coco` (some classes) or `objects365` (all classes, other names).

    Both have styles of their own, category ids with gaps, and a box for every object.
    """
    glyphs = load_glyphs()
    rng = generator(settings, part)
    everything = np.arange(len(glyphs))
    chosen = np.sort(rng.choice(everything, settings.num_coco_classes, replace=False)) if part == "coco" else everything
    style = settings.coco_style if part == "coco" else settings.objects365_style
    mean_objects = float(np.average(np.arange(1, 9), weights=settings.objects_per_image))
    per_class = max(1, round(settings.num_transfer_images * mean_objects / len(chosen)))
    counts = np.zeros(len(glyphs), np.int64)
    counts[chosen] = per_class
    layout = deal(rng, counts, settings.objects_per_image)
    drawn = draw_detection_set(folder / "images" / part, layout, part, style, settings)

    gaps = np.cumsum(rng.integers(1, 4, len(chosen)))
    category_id = {int(glyph): int(identifier) for glyph, identifier in zip(chosen, gaps, strict=True)}
    annotations: list[dict[str, Any]] = []
    for index, objects in enumerate(drawn):
        for item in objects:
            number = len(annotations) + 1
            annotations.append(coco_annotation(number, index + 1, category_id[item.glyph], item.box))
    side = settings.image_size_px
    write_json(
        folder / "annotations" / f"{part}.json",
        {
            "info": {"description": f"ovd world, {part} style"},
            "images": [
                {"id": index + 1, "width": side, "height": side, "file_name": f"{index + 1:012d}.jpg"}
                for index in range(len(drawn))
            ],
            "annotations": annotations,
            "categories": [
                {"id": category_id[int(glyph)], "name": transfer_name(int(glyph), part)} for glyph in chosen
            ],
        },
        indent=None,
    )


def transfer_name(glyph: int, part: str) -> str:
    """Return the name of a class: its first name in COCO, its synonym, if any, in title case in Objects365."""
    entry = load_glyphs()[glyph]
    return entry.name if part == "coco" else (entry.synonyms or (entry.name,))[0].title()


def write_pairs_part(folder: Path, part: str, settings: Settings) -> None:
    """Write `pairs` (scenes of the training size) or `pretraining_pairs` (small scenes) as tar shards."""
    count = settings.num_pairs if part == "pairs" else settings.num_pretraining_pairs
    pairs = draw_in_parallel(partial(pair_scene, part=part, settings=settings), count, f"drawing {part}")
    write_pair_shards(folder / part, pairs, pairs_per_shard=settings.pairs_per_shard)


def build_world(root: Path, parts: tuple[str, ...], settings: Settings) -> Path:
    """Draw the parts that are missing, and return the world's folder.

    A part counts as drawn once its marker file exists, which is written last; parts that a killed run left unfinished
    are drawn again. If several processes call this, one draws and the others wait for it.

    Raises:
        ValueError: a part's name is unknown.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; the world has {', '.join(PARTS)}")
    folder = root / settings.key()
    if "val" in parts and "train" not in parts:
        parts = ("train", *parts)  # val takes the frequency of classes from train
    for part in sorted(parts, key=PARTS.index):
        draw_once(folder, f".{part}.done", partial(_draw_part, folder, part, settings))
    return folder


def draw_once(folder: Path, marker: str, draw: Callable[[], None]) -> None:
    """Call `draw` unless the marker file exists, which is written after it; the folder is locked meanwhile.

    Where the file system has no locks, processes that start at once draw the same bytes at once.
    """
    if (folder / marker).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        lock_file(lock, waits=True)
        if not (folder / marker).exists():  # no other process drew it meanwhile
            draw()
            (folder / marker).touch()


def _draw_part(folder: Path, part: str, settings: Settings) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    write_json(folder / "settings.json", asdict(settings))
    shutil.rmtree(folder / "images" / part, ignore_errors=True)
    if part in ("pairs", "pretraining_pairs"):
        shutil.rmtree(folder / part, ignore_errors=True)
        write_pairs_part(folder, part, settings)
    elif part in TRANSFER_PARTS:
        write_transfer_part(folder, part, settings)
    else:
        write_lvis_part(folder, part, settings)
