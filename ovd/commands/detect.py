"""Detect classes of any name in images and videos.

    ovd detect photo.jpg --classes "umbrella, anchor:0.8, coffee cup" --run runs/quickstart
    ovd detect photos 'more/*.png' --classes-file words.txt --write coco --output boxes.json
    ovd detect film.mp4 --classes "person, bicycle" --track
    cat photo.jpg | ovd detect - --classes umbrella --write lines
    ovd detect photos --classes "umbrella" --prompt gadget=shop.jpg:40,30,120,90 --prompt gadget=other.jpg

A source is an image, a video, a folder with images and videos in it or below, a pattern, or - for an image on standard
input. A number with a decimal point after a name, as in anchor:0.8, is the minimum score of its boxes. The default is
--threshold, or else the detector's own threshold. The scores of a calibrated detector (train.calibration) are
probabilities.

--prompt gives an example of a class: a picture, or a box x,y,width,height in one. Several examples of one name are
combined; if the name is among --classes, so is its text.

An image gets photo.detections.jpg and photo.detections.json beside it (or in the folder --output, in subfolders if
sources have the same name); a video gets film.detections.mp4 and film.detections.jsonl, with a line per frame. Folders
and patterns leave such files out when they are given again. --write coco writes one file in COCO's form for all
sources, --write lines a line of JSON per picture to standard output. Sources that cannot be read are skipped, counted
and listed; the exit code is 2 if nothing could be read. Videos need the extra `video`: pip install 'ovd[video]';
--track also needs pip install --no-deps trackers.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ovd.choices import DetectionForm
from ovd.cli import EXIT_BAD_INPUT
from ovd.commands.arguments import (
    add_detector_options,
    closed_fraction,
    load_requested_detector,
    open_fraction,
    positive_int,
)
from ovd.data.images.media import find_media, is_video
from ovd.files import refuse_missing_run
from ovd.warn import warn

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ovd.jobs.queries import Query


def requested_queries(arguments: argparse.Namespace) -> "list[Query]":
    """Return the queries of --classes and --classes-file.

    Raises:
        ValueError: there is no query and no --prompt, or a minimum score is not in 0..1.
    """
    from ovd.jobs.queries import read_queries

    if arguments.classes is None and arguments.classes_file is None:
        if arguments.prompt:
            return []
        raise ValueError(
            "give the classes to detect: --classes 'umbrella, anchor', or --classes-file FILE with a name per line"
        )
    for name in map(str.strip, (arguments.classes or "").split(",")):
        if os.path.isfile(name):  # False for words too long for a file name
            warn(f"--classes {name} is taken as a class name; to read names from this file, use --classes-file {name}")
    queries = read_queries(arguments.classes, arguments.classes_file)
    if not queries:
        where = arguments.classes_file or f"--classes {arguments.classes!r}"
        raise ValueError(f"{where} has no class name; write for example --classes 'umbrella, anchor'")
    return queries


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="image, video, folder, pattern, or - for standard input"
    )
    parser.add_argument("--classes", help="comma-separated class names, in any words; NAME:0.8 sets a minimum score")
    parser.add_argument(
        "--classes-file", type=Path, help="text file of class names, one per line; a name may contain commas"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=IMAGE[:x,y,w,h]",
        help="an example of a class: an image, or a box in it; can be repeated",
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/quickstart"),
        help="folder of the trained detector (default: %(default)s)",
    )
    add_detector_options(parser)
    parser.add_argument("--threshold", type=closed_fraction, help="minimum score shown (default: the detector's own)")
    parser.add_argument(
        "--top", type=positive_int, default=100, help="maximum number of boxes per picture (default: %(default)s)"
    )
    parser.add_argument("--overlapping", action="store_true", help="show every box above the threshold (default: of "
                        "boxes with an IoU above 0.5 only the best, whatever their classes)")  # fmt: skip
    parser.add_argument(
        "--track", action="store_true", help="track the objects of a video through its frames and number them"
    )
    parser.add_argument(
        "--prefilter",
        type=open_fraction,
        metavar="SHARE",
        help="score all names only at this share of an image's points, such as 0.15: faster with tens of thousands of "
        "names, with nearly the same boxes (default: the run's eval.prefilter; all points if it has none)",
    )
    parser.add_argument("--threads", type=positive_int, help="number of CPU threads (default: as torch chooses)")
    parser.add_argument(
        "--write",
        choices=get_args(DetectionForm),
        default="pictures",
        help="output format (default: %(default)s); in coco, the frames of a video share a file name, so they "
        "cannot be trained on",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="pictures: folder (default: beside each source); coco: file (default: detections.json); lines: file "
        "(default: standard output)",
    )
    return parser


def main() -> None:
    arguments = parser().parse_args()
    refuse_missing_run(arguments.run)
    import torch

    from ovd.jobs.detect import preload_examples
    from ovd.jobs.detect_output import output_for
    from ovd.jobs.detect_queries import DetectJob, detect_queries
    from ovd.jobs.queries import add_examples
    from ovd.predictor import Predictor

    queries, sources = requested_queries(arguments), find_media(arguments.sources)
    if arguments.track and not any(map(is_video, sources)):
        raise ValueError("--track needs a video, but none of the sources is a video")
    queries = add_examples(queries, arguments.prompt)
    preload_examples([query.prompt for query in queries])
    output = output_for(arguments.write, arguments.output, sources, [query.name for query in queries])
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    predictor = Predictor(load_requested_detector(arguments), size=arguments.size, prefilter=arguments.prefilter)
    is_data = arguments.write == "lines" and arguments.output is None  # standard output has JSON lines alone
    search = DetectJob(
        sources,
        queries,
        output,
        threshold=arguments.threshold,
        limit=arguments.top,
        overlapping=arguments.overlapping,
        tracks=arguments.track,
        prints_boxes=not is_data,
    )
    result = detect_queries(predictor, search)
    print(result.summary, file=sys.stderr if is_data else sys.stdout)
    for line in result.unread_lines():
        print(line, file=sys.stderr)
    if result.has_no_readable_source:
        raise SystemExit(EXIT_BAD_INPUT)
