"""Split an annotation file into two by image, for example to train on one part and validate on the other.

    ovd split mine/all.json --share 0.8 --first mine/train.json --second mine/val.json

It reads files in COCO's and LVIS's form, and copies the records as they are. Images are drawn at random, such that a
class of several images is in both parts where that can be; classes that are not are named. The same seed gives the same
split; both parts keep all categories.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ovd.data.annotations import load_truth
from ovd.data.formats.options import FormatOptions
from ovd.data.split import draw_parts
from ovd.files import refuse_existing, write_json
from ovd.first_of import first_of
from ovd.warn import warn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--share", type=float, default=0.8, help="share of the images in the first part (%(default)s)")
    parser.add_argument("--first", type=Path, required=True, help="file to write")
    parser.add_argument("--second", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--xyxy", action="store_true", help="bbox is [x1, y1, x2, y2], and stays so in the parts")
    arguments = parser.parse_args()
    if not 0 < arguments.share < 1:
        parser.error(f"--share {arguments.share} is not between 0 and 1")
    options = FormatOptions(xyxy=arguments.xyxy)
    load_truth(arguments.annotations, format="coco", options=options)  # says what is wrong, where anything is
    content = json.loads(arguments.annotations.read_text(encoding="utf-8-sig"))
    images = content["images"]
    count = Counter(name for image in images if (name := image.get("file_name") or image.get("coco_url")))
    if twice := [name for name, number in count.items() if number > 1]:
        raise ValueError(
            f"{arguments.annotations}: {len(twice)} files have several image records, the first {twice[0]}; one could "
            "land in both parts; make one record of each (frames of a video: one file for each)"
        )
    classes = _classes_of_images(content)
    drawn = draw_parts(classes, round(arguments.share * len(images)), arguments.seed)
    parts = tuple(zip((arguments.first, arguments.second), drawn, strict=True))
    if arguments.first.resolve() == arguments.second.resolve():
        parser.error("--first and --second are the same file")
    for path, rows in parts:
        refuse_existing(path)
        if not rows:
            raise ValueError(f"{path} would have none of the {len(images)} images; give another --share")
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, rows in parts:
        kept = [images[row] for row in rows]
        ids = {int(image["id"]) for image in kept}
        annotations = [row for row in content["annotations"] if int(row["image_id"]) in ids]
        write_json(path, {**content, "images": kept, "annotations": annotations}, indent=None)
        print(f"{path}: {len(kept):,} images, {len(annotations):,} annotations")
    first, second = (set[int]().union(*(classes[row] for row in rows)) for rows in drawn)
    names = {int(category["id"]): category["name"] for category in content["categories"]}
    for path, alone in ((arguments.first, first - second), (arguments.second, second - first)):
        if alone:
            named = first_of([names[class_id] for class_id in sorted(alone)])
            warn(f"{path} alone has objects of {len(alone)} classes: {named}")


def _classes_of_images(content: dict[str, Any]) -> list[set[int]]:
    """The ids of the classes that each image has an object of."""
    of_id: dict[int, set[int]] = {int(image["id"]): set() for image in content["images"]}
    for row in content["annotations"]:
        of_id[int(row["image_id"])].add(int(row["category_id"]))
    return list(of_id.values())
