"""Label your own images with a detector, for a person to correct and a smaller detector to learn from.

    ovd label photos --classes-file words.txt --run runs/quickstart --output boxes.json
    ovd label "photos/*.jpg" --classes "umbrella, anchor:0.8" --output labels --to yolo
    ovd label photos --recursive --classes-file words.txt --output tasks.json --to label_studio

The classes file has one name per line, which may contain commas. Boxes are kept that score at least the detector's own
threshold, or --threshold; a number after a name (anchor:0.8) is the threshold of its boxes.

Formats: `coco` (one JSON file, which ovd trains on and CVAT imports), `label_studio` (JSON tasks with predictions),
`yolo` and `voc` (folders). Scores are kept. Beside the output, NAME.review.html shows the boxes that the detector is
least sure of, to accept, reject and rename, and a report lists the images that could not be read. The same command
resumes an interrupted labeling, from OUTPUT.partial.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ovd.choices import ExportFormatName
from ovd.commands.arguments import (
    add_detector_options,
    closed_fraction,
    load_requested_detector,
    nonnegative_int,
    positive_int,
)
from ovd.data.export.boxes import check_files, check_names
from ovd.data.export.label_studio import LOCAL_FILES
from ovd.data.images.files import collect_images, name_below
from ovd.files import refuse_missing_run
from ovd.jobs.label_output import LabelOutput

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ovd.jobs.queries import Query


def _arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="folders, files, or patterns in quotes")
    parser.add_argument("--recursive", action="store_true", help="also label the images in subfolders")
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes-file", type=Path, help="text file of class names, one per line")
    classes.add_argument("--classes", help="comma-separated class names; NAME:0.8 sets a minimum score")
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/quickstart"),
        help="folder of the trained detector (default: %(default)s)",
    )
    add_detector_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="file or folder to write; must not exist")
    parser.add_argument(
        "--to", choices=get_args(ExportFormatName), default="coco", help="output format (default: %(default)s)"
    )
    parser.add_argument("--threshold", type=closed_fraction, help="minimum score (default: the detector's own)")
    parser.add_argument("--overlapping", action="store_true", help="keep every box above the threshold (default: of "
                        "boxes with an IoU above 0.5 only the best, whatever their names)")  # fmt: skip
    parser.add_argument("--review", type=nonnegative_int, default=200, metavar="N",
                        help="number of boxes on the review page; 0 for no page (default: %(default)s)")  # fmt: skip
    parser.add_argument("--copy-images", action="store_true", help="yolo: copy the images instead of linking to them")
    parser.add_argument("--image-url", default=LOCAL_FILES, metavar="PREFIX",
                        help="label_studio: prefix of image names in URLs (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, help="number of images per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=nonnegative_int, default=2, help="number of processes that read images (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, default=2, help="number of CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.copy_images and arguments.to != "yolo":
        parser.error("--copy-images needs --to yolo")
    if arguments.image_url != LOCAL_FILES and arguments.to != "label_studio":
        parser.error("--image-url needs --to label_studio")
    refuse_missing_run(arguments.run)
    return arguments


def requested_queries(arguments: argparse.Namespace) -> "list[Query]":
    """Return the queries of --classes or --classes-file.

    Raises:
        ValueError: there is no name, or a name cannot be written.
    """
    from ovd.jobs.queries import read_queries

    queries = read_queries(arguments.classes, arguments.classes_file)
    try:
        check_names([query.name for query in queries])
    except ValueError as error:
        raise ValueError(f"{arguments.classes_file or '--classes'}: {error}") from None
    return queries


def main() -> None:
    arguments = _arguments()
    queries = requested_queries(arguments)
    output = LabelOutput(
        arguments.output,
        arguments.to,
        source=f"ovd {arguments.run.name}",
        review_boxes=arguments.review,
        copy_images=arguments.copy_images,
        image_url=arguments.image_url,
    )
    output.prepare_folder()
    root, paths = collect_images(arguments.images, recursive=arguments.recursive)
    check_files([name_below(root, path) for path in paths], arguments.to)

    import torch

    from ovd.data.loading.loader import LoaderOptions
    from ovd.jobs.label import LabelJob, label_into_files

    torch.set_num_threads(arguments.threads)
    labeling = LabelJob(
        root,
        paths,
        queries,
        output,
        LoaderOptions(arguments.batch_size, arguments.workers),
        threshold=arguments.threshold,
        overlapping=arguments.overlapping,
        size=arguments.size,
    )
    print(label_into_files(load_requested_detector(arguments), labeling).summary)
