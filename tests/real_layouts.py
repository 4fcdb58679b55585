"""Miniatures of real data sets in their own layouts: the world's scenes under real file names, ids and class names."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import yaml

from ovd.data.coco_zero_shot import BASE, NOVEL

COCO_ID_GAPS = 7
"""Interval of the gaps in COCO's category ids: every seventh number is left out here."""


@dataclass(frozen=True)
class Layout:
    """The paths at which training and evaluation find a miniature."""

    format: str
    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path


def lvis(world: Path, folder: Path) -> Layout:
    """Write a miniature of LVIS v1: no file_name, images in COCO's two folders, a validation set that spans both."""
    for part in ("train", "val"):
        content = _content(world, part)
        for number, image in enumerate(content["images"]):
            split = "train2017" if part == "train" or number % 3 else "val2017"
            name = f"{image['id'] + (10**6 if part == 'val' else 0):012d}.jpg"
            _link(world, image, folder / "coco" / split / name)
            image["coco_url"] = f"http://images.cocodataset.org/{split}/{name}"
            image.pop("file_name", None)
        _write(folder / "lvis" / f"lvis_v1_{part}.json", content)
    files = folder / "lvis"
    return Layout("lvis", files / "lvis_v1_train.json", folder / "coco", files / "lvis_v1_val.json", folder / "coco")


def coco(world: Path, folder: Path, format: str = "coco") -> Layout:
    """Write a miniature of COCO 2017: 80 classes with gaps in their ids, a crowd region, images without objects."""
    names = sorted(BASE | NOVEL) + [f"other {number}" for number in range(15)]
    for part in ("train", "val"):
        content = _content(world, part)
        ids = [number for number in range(1, 120) if number % COCO_ID_GAPS][:80]
        content["categories"] = [
            {"id": category_id, "name": name, "supercategory": "thing"}
            for category_id, name in zip(ids, names, strict=True)
        ]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"] % 80]
            annotation["iscrowd"] = int(annotation["id"] % 50 == 0)
        for image in content["images"]:
            name = f"{image['id']:012d}.jpg"
            _link(world, image, folder / "coco" / f"{part}2017" / name)
            image["file_name"] = name
            for field in ("neg_category_ids", "not_exhaustive_category_ids"):
                del image[field]
        _write(folder / "coco" / "annotations" / f"instances_{part}2017.json", content)
    root, files = folder / "coco", folder / "coco" / "annotations"
    return Layout(
        format, files / "instances_train2017.json", root / "train2017", files / "instances_val2017.json",
        root / "val2017",
    )  # fmt: skip


def objects365(world: Path, folder: Path, *, first_version: bool = False) -> Layout:
    """Write a miniature of Objects365 v2 (patches, a folder in file_name that no archive has, misspelled names, an
    unreleased image) or of v1 (bare file names, one folder)."""
    for part in ("train", "val"):
        content = _content(world, part)
        for category in content["categories"]:
            category["name"] = category["name"].replace("_", " ").title()
            del category["synonyms"], category["frequency"]
        content["categories"][0]["name"] = "Moniter/TV"
        if first_version:
            for image in content["images"]:
                image["file_name"] = f"obj365_{part}_{image['id']:012d}.jpg"
                _link(world, image, folder / "objects365" / part / image["file_name"])
            _write(folder / "objects365" / f"objects365_{part}.json", content)
            continue
        for number, image in enumerate(content["images"]):
            patch, version = f"patch{number % 4 + (16 if number % 2 else 0)}", 2 if number % 2 else 1
            name = f"objects365_v{version}_{image['id']:08d}.jpg"
            _link(world, image, folder / "objects365" / part / patch / name)
            image["file_name"] = f"images/v{version}/{patch}/{name}"
        if part == "train":
            content["images"][0]["file_name"] = "images/v2/patch16/objects365_v2_00908726.jpg"
        _write(folder / "objects365" / f"zhiyuan_objv2_{part}.json", content)
    root = folder / "objects365"
    name = "objects365" if first_version else "zhiyuan_objv2"
    return Layout("objects365", root / f"{name}_train.json", root / "train", root / f"{name}_val.json", root / "val")


def voc(world: Path, folder: Path) -> Layout:
    """Write a miniature of VOCdevkit: XML with 1-based inclusive corners, lists of names, a difficult object, an image
    without objects."""
    root = folder / "VOCdevkit" / "VOC2012"
    for part in ("train", "val"):
        content = _content(world, part)
        names = {category["id"]: category["name"] for category in content["categories"]}
        stems = []
        for number, image in enumerate(content["images"]):
            stem = f"{2007 + number % 6}_{part}_{image['id']:06d}"
            stems.append(stem)
            _link(world, image, root / "JPEGImages" / f"{stem}.jpg")
            objects = [
                voc_object(names[row["category_id"]], row["bbox"], difficult=row["id"] % 50 == 0)
                for row in content["annotations"]
                if row["image_id"] == image["id"]
            ]
            size = (image["height"], image["width"])
            _write_text(root / "Annotations" / f"{stem}.xml", voc_xml(f"{stem}.jpg", size, objects if number else []))
        _write_text(root / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{stem}\n" for stem in stems))
    lists = root / "ImageSets" / "Main"
    return Layout("voc", lists / "train.txt", root / "JPEGImages", lists / "val.txt", root / "JPEGImages")


def voc_object(name: str, box_xywh: list[float], *, difficult: bool = False, first: int = 1) -> str:
    """Format an `<object>` with inclusive corners counted from `first`, or with box edges if `first` is 0."""
    x, y, width, height = box_xywh
    corners = {"xmin": x + first, "ymin": y + first, "xmax": x + width, "ymax": y + height}
    box = "".join(f"<{name}>{value:.6f}</{name}>" for name, value in corners.items())
    return (
        f"<object><name>{escape(name)}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox></object>"
    )


def voc_xml(file_name: str, size: tuple[int, int], objects: list[str]) -> str:
    """Format the XML of an image; `size` is its height and width."""
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return (
        f"<annotation><folder>VOC2012</folder><filename>{escape(file_name)}</filename>{sides}"
        f"<segmented>0</segmented>{''.join(objects)}</annotation>"
    )


def yolo(world: Path, folder: Path) -> Layout:
    """Write a miniature of YOLO: a data.yaml with both splits, labels under `labels`, an empty label file and a missing
    one."""
    root = folder / "yolo"
    for part in ("train", "val"):
        content = _content(world, part)
        rows = {category["id"]: row for row, category in enumerate(content["categories"])}
        for number, image in enumerate(content["images"]):
            name = f"{image['id']:06d}"
            _link(world, image, root / "images" / part / f"{name}.jpg")
            labels = [
                yolo_row(rows[row["category_id"]], row["bbox"], (image["height"], image["width"]))
                for row in content["annotations"]
                if row["image_id"] == image["id"]
            ]
            if number != 1:
                _write_text(root / "labels" / part / f"{name}.txt", "".join(labels if number else []))
        names = {row: category["name"] for row, category in enumerate(content["categories"])}
    data = {"path": str(root), "train": "images/train", "val": "images/val", "nc": len(names), "names": names}
    _write_text(root / "data.yaml", yaml.safe_dump(data))
    return Layout("yolo", root / "data.yaml", root, root / "data.yaml", root)


def yolo_row(row: int, box_xywh: list[float], size: tuple[int, int], decimals: int = 6) -> str:
    """Format a line of a label file; `size` is the height and width of the image."""
    x, y, width, height = box_xywh
    fractions = ((x + width / 2) / size[1], (y + height / 2) / size[0], width / size[1], height / size[0])
    return f"{row} {' '.join(f'{fraction:.{decimals}f}' for fraction in fractions)}\n"


def _content(world: Path, part: str) -> dict:
    return json.loads((world / "annotations" / f"lvis_{part}.json").read_text())


def _link(world: Path, image: dict, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(world / "images" / "/".join(image["coco_url"].split("/")[-2:]), target)


def _write(path: Path, content: dict) -> None:
    _write_text(path, json.dumps(content))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
