"""Split an annotation file into two by image, for example to train on one part and validate on the other.

    ovd split mine/all.json --share 0.8 --first mine/train.json --second mine/val.json

It reads files in COCO's and LVIS's form, and copies the records unchanged. Images are drawn at random, but so that a
class with several images is in both parts where possible; classes in one part alone are listed. The same seed gives the
same split; both parts keep all categories.
"""

import argparse
from pathlib import Path

from ovd.format_count import format_count
from ovd.jobs.split import split_annotations
from ovd.join_first import join_first
from ovd.warn import warn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="annotation file in COCO's or LVIS's form")
    parser.add_argument(
        "--share", type=float, default=0.8, help="share of the images in the first part (default: %(default)s)"
    )
    parser.add_argument("--first", type=Path, required=True, help="file to write the first part to")
    parser.add_argument("--second", type=Path, required=True, help="file to write the second part to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random split (default: %(default)s)")
    parser.add_argument("--xyxy", action="store_true", help="boxes are [x1, y1, x2, y2], in the file and in its parts")
    arguments = parser.parse_args()
    if not 0 < arguments.share < 1:
        parser.error(f"--share {arguments.share} is not between 0 and 1")
    if arguments.first.resolve() == arguments.second.resolve():
        parser.error("--first and --second are the same file")
    parts = split_annotations(
        arguments.annotations,
        arguments.first,
        arguments.second,
        share=arguments.share,
        seed=arguments.seed,
        xyxy=arguments.xyxy,
    )
    for part in parts:
        images, annotations = format_count(part.num_images, "image"), format_count(part.num_annotations, "annotation")
        print(f"{part.file}: {images}, {annotations}")
    for part in parts:
        if part.exclusive_classes:
            classes = format_count(len(part.exclusive_classes), "class", "classes")
            warn(f"only {part.file} has objects of {classes}: {join_first(part.exclusive_classes)}")
