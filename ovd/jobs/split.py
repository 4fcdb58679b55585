"""Split an annotation file in COCO's or LVIS's form into two by image."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd.data.annotations import load_truth
from ovd.data.formats.options import FormatOptions
from ovd.data.split import draw_parts
from ovd.files import atomic_write, make_parent_folder, refuse_existing
from ovd.format_count import format_count


@dataclass(frozen=True)
class SplitPart:
    """One of the two files that a set was split into."""

    file: Path
    num_images: int
    num_annotations: int
    exclusive_classes: tuple[str, ...]
    """Names of the classes with objects in this part alone, in the order of their ids."""


def split_annotations(
    annotations: Path, first: Path, second: Path, *, share: float, seed: int, xyxy: bool
) -> tuple[SplitPart, SplitPart]:
    """Write the unchanged records of each image into one of two files; both keep all categories.

    Args:
        first, second: files to write.
        share: share of the images in the first part.
        seed: seed of the random split (`draw_parts`).
        xyxy: whether `bbox` is [x1, y1, x2, y2].

    Raises:
        DataError: as raised by `load_truth`.
        ValueError: a file has several image records, a part would have no image, a file to write exists, or its folder
            cannot be made or written to.
    """
    load_truth(annotations, format="coco", options=FormatOptions(xyxy=xyxy))  # raises if there are faults
    content = json.loads(annotations.read_text(encoding="utf-8-sig"))
    images = content["images"]
    _check_files_once(annotations, images)
    classes = _classes_of_images(content)
    drawn = draw_parts(classes, round(share * len(images)), seed)
    for file, rows in zip((first, second), drawn, strict=True):
        refuse_existing(file)
        if not rows:
            raise ValueError(f"{file} would have none of {format_count(len(images), 'image')}; give another --share")
        make_parent_folder(file)
    in_first, in_second = (set[int]().union(*(classes[row] for row in rows)) for rows in drawn)
    return (
        _write_part(first, content, drawn[0], exclusive_ids=in_first - in_second),
        _write_part(second, content, drawn[1], exclusive_ids=in_second - in_first),
    )


def _check_files_once(annotations: Path, images: list[dict[str, Any]]) -> None:
    """Check that no file has several image records.

    Raises:
        ValueError: a file has several.
    """
    count = Counter(str(name) for image in images if (name := image.get("file_name") or image.get("coco_url")))
    if twice := [name for name, number in count.items() if number > 1]:
        raise ValueError(
            f"{annotations}: several image records for {format_count(len(twice), 'file')}, the first {twice[0]}, "
            "which could be put into both parts; merge the records (for frames of a video, save one file per frame)"
        )


def _classes_of_images(content: dict[str, Any]) -> list[set[int]]:
    """Return the category ids of the objects in each image."""
    of_id: dict[int, set[int]] = {int(image["id"]): set() for image in content["images"]}
    for row in content["annotations"]:
        of_id[int(row["image_id"])].add(int(row["category_id"]))
    return list(of_id.values())


def _write_part(file: Path, content: dict[str, Any], rows: list[int], *, exclusive_ids: set[int]) -> SplitPart:
    """Write the images in these rows with their annotations.

    Args:
        exclusive_ids: ids of the categories with objects in this part alone.
    """
    images = [content["images"][row] for row in rows]
    ids = {int(image["id"]) for image in images}
    annotations = [row for row in content["annotations"] if int(row["image_id"]) in ids]
    with atomic_write(file) as stream:  # not write_json: a record may have NaN, which pandas writes for nothing
        stream.write(json.dumps({**content, "images": images, "annotations": annotations}) + "\n")
    names = {int(category["id"]): category["name"] for category in content["categories"]}
    return SplitPart(file, len(images), len(annotations), tuple(names[class_id] for class_id in sorted(exclusive_ids)))
