"""Split an annotation file into two by image, for example to train on one part and validate on the other.

    ovd split mine/all.json --share 0.8 --first mine/train.json --second mine/val.json

It reads files in COCO's and LVIS's form, and copies their records as they are. Images are drawn at random; then some
are exchanged, so that each class of several images is in both parts where that can be. The same seed gives the same
split; both parts keep all categories.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.annotations import load_truth
from ovd.data.formats.options import FormatOptions
from ovd.files import write_json

_NUM_NAMED = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--share", type=float, default=0.8, help="share of the images in the first part (%(default)s)")
    parser.add_argument("--first", type=Path, required=True, help="file to write")
    parser.add_argument("--second", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--xyxy", action="store_true", help="`bbox` is [x1, y1, x2, y2]; the parts have it so, too")
    arguments = parser.parse_args()
    if not 0 < arguments.share < 1:
        parser.error(f"--share {arguments.share} is not between 0 and 1")
    # This says what is wrong with the file, where anything is.
    load_truth(arguments.annotations, format="coco", options=FormatOptions(xyxy=arguments.xyxy))
    content = json.loads(arguments.annotations.read_text(encoding="utf-8-sig"))
    images = content["images"]
    count = Counter(name for image in images if (name := image.get("file_name") or image.get("coco_url")))
    if twice := [name for name, number in count.items() if number > 1]:
        raise ValueError(
            f"{arguments.annotations}: {len(twice)} files have several image records, the first {twice[0]}; one could "
            "land in both parts; make one record of each (frames of a video: one file for each)"
        )
    order = np.random.default_rng(arguments.seed).permutation(len(images)).tolist()
    num_first = round(arguments.share * len(images))
    classes = _classes_of_images(content)
    rows_of_first = _with_classes_shared(order, num_first, classes)
    rows_of_second = set(order) - rows_of_first
    parts = ((arguments.first, rows_of_first), (arguments.second, rows_of_second))
    if arguments.first.resolve() == arguments.second.resolve():
        parser.error("--first and --second are the same file")
    for path, rows in parts:
        if path.exists():
            raise ValueError(f"{path} exists; give another file")
        if not rows:
            raise ValueError(f"{path} would have none of the {len(images)} images; give another --share")
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, rows in parts:
        kept = [images[row] for row in sorted(rows)]
        ids = {int(image["id"]) for image in kept}
        annotations = [row for row in content["annotations"] if int(row["image_id"]) in ids]
        write_json(path, {**content, "images": kept, "annotations": annotations}, indent=None)
        print(f"{path}: {len(kept):,} images, {len(annotations):,} annotations")
    for path, rows, others in ((arguments.first, rows_of_first, rows_of_second),
                               (arguments.second, rows_of_second, rows_of_first)):  # fmt: skip
        alone = set().union(*(classes[row] for row in rows)) - set().union(*(classes[row] for row in others))
        if names := [row["name"] for row in content["categories"] if int(row["id"]) in alone]:
            more = ", ..." if len(names) > _NUM_NAMED else ""
            where = f"{path}: {len(names)} classes have objects in this part only"
            print(f"warning: {where}: {', '.join(names[:_NUM_NAMED])}{more}", file=sys.stderr)


def _classes_of_images(content: dict[str, Any]) -> list[set[int]]:
    """The ids of the classes that each image has an object of."""
    of_image: dict[int, set[int]] = defaultdict(set)
    for row in content["annotations"]:
        of_image[int(row["image_id"])].add(int(row["category_id"]))
    return [of_image[int(image["id"])] for image in content["images"]]


def _with_classes_shared(order: Sequence[int], num_first: int, classes: Sequence[set[int]]) -> set[int]:
    """The rows of `num_first` images: the first of the order, after exchanges of images of classes that one part lacks.

    An image is exchanged only where its part keeps another of each of its classes. Rare classes come first.
    """
    part_of = dict.fromkeys(order[:num_first], 0) | dict.fromkeys(order[num_first:], 1)
    total = Counter(class_id for of_image in classes for class_id in of_image)
    shared = [{class_id for class_id in of_image if total[class_id] > 1} for of_image in classes]
    counts = [Counter[int](), Counter[int]()]
    for row, part in part_of.items():
        counts[part].update(shared[row])

    def move(row: int) -> None:
        counts[part_of[row]].subtract(shared[row])
        part_of[row] = 1 - part_of[row]
        counts[part_of[row]].update(shared[row])

    def first_to_leave(part: int, *needed: int) -> int | None:
        return next(
            (
                row
                for row in order
                if part_of[row] == part
                and shared[row].issuperset(needed)
                and all(counts[part][class_id] > 1 for class_id in shared[row])
            ),
            None,
        )

    for class_id in sorted(set().union(*shared), key=lambda class_id: (total[class_id], class_id)):
        for part in (0, 1):
            if counts[1 - part][class_id] == 0 and (there := first_to_leave(part, class_id)) is not None:
                move(there)
                back = first_to_leave(1 - part)
                move(there if back is None else back)
    return {row for row, part in part_of.items() if part == 0}
