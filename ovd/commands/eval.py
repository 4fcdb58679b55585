"""Evaluate a trained detector on a data set with any vocabulary, or an existing results file.

    ovd eval runs/quickstart                                     # the run's validation set
    ovd eval runs/quickstart --html                              # and one page to look through (report.html)
    ovd eval runs/quickstart --format coco --annotations my.json --images my_images
    ovd eval runs/quickstart --format yolo --annotations mine/data.yaml --split val
    ovd eval runs/quickstart --onnx model.onnx                   # what ovd export made of the run
    ovd eval --results results.json --format lvis --annotations lvis_v1_val.json --engine official

LVIS files give ordinary AP (at most 300 detections per image) and fixed AP side by side; all other formats give COCO's.
AP ranks detections; further tables measure them as decisions (decisions.json, reliability.png) and, for a detector, how
often true boxes are named correctly (naming.json, naming.png). predictions.jpg shows some images with found and missed
objects. With --results, pictures need --html and --images, the folder of the images.
"""

import argparse
from pathlib import Path
from typing import get_args

from ovd.choices import DataFormatName, Engine
from ovd.commands.arguments import (
    add_detector_options,
    add_format_options,
    format_options,
    load_requested_detector,
    positive_int,
)
from ovd.evaluation.note import EvaluationNote
from ovd.evaluation.run import evaluate_results_file
from ovd.files import refuse_missing_run
from ovd.jobs.evaluation_subject import EvaluationSubject

RUN_OPTIONS = ("expert", "same_place", "nearest", "onnx", "size", "device")
"""Options that need a run, and cannot be used with a results file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder or checkpoint folder of a trained detector")
    parser.add_argument("--results", type=Path, help="evaluate this COCO-format results file instead of a detector")
    parser.add_argument("--annotations", type=Path, help="annotation file (default: the run's validation set)")
    parser.add_argument("--images", type=Path, help="folder of the images")
    parser.add_argument("--format", choices=get_args(DataFormatName), help="format of the annotations")
    add_format_options(parser, default_split="val")
    add_detector_options(parser)
    parser.add_argument("--onnx", type=Path, help="evaluate this file, which ovd export wrote from RUN")
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        help="package that computes the metrics (default: the run's eval.engine; hotcoco with --results)",
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: RUN/eval, "
                        "RUN/eval-NAMES with another data set, experts or size)")  # fmt: skip
    parser.add_argument("--html", action="store_true", help="also write report.html, a single page that works offline: "
                        "classes, curves, confused names, best and worst images")  # fmt: skip
    parser.add_argument("--threads", type=positive_int, default=2, help="number of CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if (arguments.run is None) == (arguments.results is None):
        parser.error("give either a RUN or --results FILE")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a file; give a folder")
    if arguments.results is not None:
        if useless := [name for name in RUN_OPTIONS if getattr(arguments, name)]:
            options = ", ".join("--" + name.replace("_", "-") for name in useless)
            parser.error(f"{options} cannot be used with --results: they need a RUN")
        if arguments.annotations is None or arguments.format is None:
            parser.error("--results needs --annotations and --format")
        evaluate_results_file(
            arguments.annotations,
            arguments.results,
            arguments.format,
            arguments.engine or "hotcoco",
            arguments.output,
            images=arguments.images,
            options=format_options(arguments),
            html=arguments.html,
        )
        return
    refuse_missing_run(arguments.run)
    subject = EvaluationSubject(
        arguments.run,
        arguments.annotations,
        arguments.images,
        arguments.format,
        format_options(arguments),
        experts=tuple(arguments.expert),
        same_place=arguments.same_place,
        nearest=arguments.nearest,
        onnx=arguments.onnx,
        size=arguments.size,
    )
    from ovd.distributed import process_group  # here, since importing torch takes seconds

    with process_group():
        evaluate_from_arguments(arguments, subject)


def evaluate_from_arguments(arguments: argparse.Namespace, subject: EvaluationSubject) -> None:
    """Evaluate the run on the given data set, or on its validation set."""
    import torch  # here, since a results file needs none of these, which take seconds to import

    from ovd.build.data import load_evaluation_index
    from ovd.distributed import is_main
    from ovd.jobs.evaluate import evaluate_run, prepare_output

    torch.set_num_threads(arguments.threads)
    output = arguments.output or arguments.run / subject.folder_name
    trained = load_requested_detector(arguments)
    index = None
    if subject.annotations is not None and subject.format is not None:
        index = load_evaluation_index(subject.annotations, subject.images, subject.format, options=subject.options)
    prepare_output(output, subject.recorded_options())
    evaluate_run(
        trained,
        output=output,
        index=index,
        engine=arguments.engine,
        size=subject.size,
        html=arguments.html,
        onnx=subject.onnx,
        note=EvaluationNote(options=subject.recorded_options()),
    )
    if not is_main():
        return
    files = ("results.json", "metrics.json", "decisions.json", "per_class.csv")
    optional = ("predictions.jpg", "naming.json", "report.html")  # an earlier evaluation's were removed
    names = [name for name in (*files, *optional) if (output / name).exists()]
    print(f"{', '.join(names)} and their plots are in {output}")
