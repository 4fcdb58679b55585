"""Check a whole data set and print its faults, record by record.

    cd data
    ovd check lvis --annotations lvis/lvis_v1_val.json --images coco
    ovd check coco --annotations coco/annotations/instances_val2017.json --images coco/val2017
    ovd check objects365 --annotations objects365/zhiyuan_objv2_val.json --images objects365/val
    ovd check voc --annotations mine/Annotations --images mine/JPEGImages
    ovd check yolo --annotations mine/data.yaml --split train
    ovd check pairs --shards cc12m

Every record is checked and every image decoded, as in training and evaluation; nothing is changed. Prints class counts,
each kind of fault with its first 20 records, and what training and an evaluation would do with the set as a whole; the
codes are explained in data/README.md. Exits with 2 if there is a fault that training would leave out, or that would
stop a training or an evaluation.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

from ovd.build.arguments import add_format_options, format_options
from ovd.choices import DataFormatName
from ovd.cli import EXIT_BAD_INPUT
from ovd.data.annotations import load_truth
from ovd.data.check import check_images, check_pairs, describe, describe_findings
from ovd.data.formats.known import FORMATS
from ovd.data.formats.options import FormatOptions
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataError, DataReport
from ovd.data.truth import Truth
from ovd.data.verdict import evaluation_verdict, training_verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=[*get_args(DataFormatName), "pairs"])
    parser.add_argument("--annotations", type=Path, help="annotation file, or folder where the format has one")
    parser.add_argument("--images", type=Path, help="folder of images, see data/README.md for which")
    parser.add_argument("--no-images", action="store_true", help="check only the annotation file")
    add_format_options(parser, default_split="train")
    parser.add_argument("--shards", type=Path, help="folder of tar shards of image-text pairs")
    arguments = parser.parse_args()
    report, stops = DataReport(stops=False), False
    if arguments.dataset == "pairs":
        if arguments.shards is None:
            parser.error("pairs need --shards FOLDER")
        others = ("annotations", "images", "no_images", *(field.name for field in fields(FormatOptions)))
        if given := [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name, None)]:
            parser.error(f"pairs are checked with their images, and take no {', '.join(given)}")
        shards = PairShards(arguments.shards)
        check_pairs(shards, report)
        stops = report.num_used() == 0
        print(f"{len(shards):,} pairs in {len(shards.file_names):,} shards")
        print(f"{shards.describe_rejected()}; {shards.num_undecodable_captions:,} captions not in UTF-8")
        print("\n".join(describe_findings(report)))
    else:
        if arguments.shards is not None:
            parser.error(f"--shards is for pairs; {arguments.dataset} has none")
        needs_images = not (arguments.no_images or FORMATS[arguments.dataset].finds_images)
        if arguments.annotations is None or (arguments.images is None and needs_images):
            parser.error(f"{arguments.dataset} needs --annotations FILE and --images FOLDER (or --no-images)")
        if arguments.sizes_from_images and arguments.images is None:
            parser.error("--sizes-from-images needs --images FOLDER")
        from ovd.build.data import load_evaluation_index

        index = load_evaluation_index(
            arguments.annotations,
            arguments.images,
            arguments.dataset,
            report=report,
            options=format_options(arguments),
            with_truth=False,
        )
        usable = index if arguments.no_images else check_images(index, report)
        print(describe(index, report, usable))
        if not arguments.no_images:
            has_option = "by_base_name" in FORMATS[arguments.dataset].options and not arguments.by_base_name
            num_learned = len(usable.boxes.values) + len(usable.crowd_boxes.values)
            verdicts = [
                training_verdict(index, report, num_learned, has_option=has_option),
                evaluation_verdict(index, report, _truth(arguments)),
            ]
            print("", *(verdict.words for verdict in verdicts), sep="\n")
            stops = any(verdict.stops for verdict in verdicts)
    if stops or report.has_skipped():
        raise SystemExit(EXIT_BAD_INPUT)


def _truth(arguments: argparse.Namespace) -> Truth | DataError:
    """The truth that an evaluation on the set would go by, or what is wrong with it."""
    options = format_options(arguments)
    if "split" in FORMATS[arguments.dataset].options:
        options = replace(options, split=options.split or "train")  # as the index, whatever an evaluation would take
    try:
        return load_truth(arguments.annotations, arguments.images, format=arguments.dataset, options=options)
    except DataError as error:
        return error
