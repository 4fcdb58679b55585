"""Check a whole data set and print its faults, record by record.

    cd data
    ovd check lvis --annotations lvis/lvis_v1_val.json --images coco
    ovd check coco --annotations coco/annotations/instances_val2017.json --images coco/val2017
    ovd check objects365 --annotations objects365/zhiyuan_objv2_val.json --images objects365/val
    ovd check voc --annotations mine/Annotations --images mine/JPEGImages
    ovd check yolo --annotations mine/data.yaml --split train
    ovd check pairs --shards cc12m

Every record is checked and every image decoded, as in training and evaluation; nothing is changed. The output has class
counts, each kind of fault with its first 20 records, and what training and an evaluation would do with the whole set;
data/README.md explains the codes. The exit code is 2 if training would leave out a faulty record, or if a fault would
stop a training or an evaluation.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import get_args

from ovd.choices import DataFormatName, ImportFormatName
from ovd.cli import EXIT_BAD_INPUT
from ovd.commands.arguments import add_format_options, format_options
from ovd.data.formats.options import FormatOptions
from ovd.data.formats.supported import FORMATS
from ovd.jobs.check import check_annotations, check_shards


def _dataset(name: str) -> str:
    """Parse the format, with a hint for formats that can only be imported."""
    if name in set(get_args(ImportFormatName)) - set(get_args(DataFormatName)):
        raise argparse.ArgumentTypeError(
            f"ovd check does not read {name}; convert it with `ovd import-boxes {name}`, which reports its faults and "
            "writes a JSON file of format coco"
        )
    return name


def _arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "dataset", type=_dataset, choices=[*get_args(DataFormatName), "pairs"], help="format of the data"
    )
    parser.add_argument(
        "--annotations", type=Path, help="annotation file, or the folder of annotations if the format has one"
    )
    parser.add_argument("--images", type=Path, help="folder of images (data/README.md says which)")
    parser.add_argument("--no-images", action="store_true", help="check only the annotation file")
    add_format_options(parser, default_split="train")
    parser.add_argument("--shards", type=Path, help="folder of tar shards of image-text pairs")
    arguments = parser.parse_args()
    if arguments.dataset == "pairs":
        if arguments.shards is None:
            parser.error("pairs need --shards FOLDER")
        others = ("annotations", "images", "no_images", *(field.name for field in fields(FormatOptions)))
        if given := [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name, None)]:
            parser.error(f"{', '.join(given)} cannot be used with pairs")
        return arguments
    if arguments.shards is not None:
        parser.error(f"--shards cannot be used with {arguments.dataset}")
    needs_images = not (arguments.no_images or FORMATS[arguments.dataset].finds_images)
    if arguments.annotations is None or (arguments.images is None and needs_images):
        parser.error(f"{arguments.dataset} needs --annotations FILE and --images FOLDER (or --no-images)")
    if arguments.sizes_from_images and arguments.images is None:
        parser.error("--sizes-from-images needs --images FOLDER")
    return arguments


def main() -> None:
    arguments = _arguments()
    if arguments.dataset == "pairs":
        checked = check_shards(arguments.shards)
    else:
        checked = check_annotations(
            arguments.annotations,
            arguments.images,
            arguments.dataset,
            format_options(arguments),
            with_images=not arguments.no_images,
        )
    print(checked.summary)
    if not checked.is_sound:
        raise SystemExit(EXIT_BAD_INPUT)
