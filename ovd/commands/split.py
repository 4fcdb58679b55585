"""Split an annotation file into two by image, for example to train on one part and validate on the other.

    ovd split mine/all.json --share 0.8 --first mine/train.json --second mine/val.json

It reads files in COCO's and LVIS's form. The same seed gives the same split; both parts keep all categories.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from ovd.data.annotations import load_truth
from ovd.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--share", type=float, default=0.8, help="share of the images in the first part (%(default)s)")
    parser.add_argument("--first", type=Path, required=True, help="file to write")
    parser.add_argument("--second", type=Path, required=True, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 0 < arguments.share < 1:
        parser.error(f"--share {arguments.share} is not between 0 and 1")
    load_truth(arguments.annotations, format="coco")  # says what is wrong with the file, where anything is
    content = json.loads(arguments.annotations.read_text(encoding="utf-8-sig"))
    images = content["images"]
    count = Counter(name for image in images if (name := image.get("file_name") or image.get("coco_url")))
    if twice := [name for name, number in count.items() if number > 1]:
        raise ValueError(
            f"{arguments.annotations}: {len(twice)} files have several image records, the first {twice[0]}; one could "
            "land in both parts; make one record of each (frames of a video: one file for each)"
        )
    order = np.random.default_rng(arguments.seed).permutation(len(images))
    num_first = round(arguments.share * len(images))
    parts = ((arguments.first, order[:num_first]), (arguments.second, order[num_first:]))
    if arguments.first.resolve() == arguments.second.resolve():
        parser.error("--first and --second are the same file")
    for path, rows in parts:
        if path.exists():
            raise ValueError(f"{path} exists; give another file")
        if not len(rows):
            raise ValueError(f"{path} would have none of the {len(images)} images; give another --share")
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, rows in parts:
        kept = [images[row] for row in sorted(rows.tolist())]
        ids = {int(image["id"]) for image in kept}
        annotations = [row for row in content["annotations"] if int(row["image_id"]) in ids]
        write_json(path, {**content, "images": kept, "annotations": annotations}, indent=None)
        print(f"{path}: {len(kept):,} images, {len(annotations):,} annotations")
