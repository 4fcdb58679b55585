"""Evaluate a trained detector on a data set with any vocabulary, or an existing results file.

    ovd eval runs/quickstart                                     # the run's validation set
    ovd eval runs/quickstart --html                              # and one page to look through (report.html)
    ovd eval runs/quickstart --format coco --annotations my.json --images my_images
    ovd eval runs/quickstart --format yolo --annotations mine/data.yaml --split val
    ovd eval runs/quickstart --onnx model.onnx                   # what ovd export made of the run
    ovd eval --results results.json --format lvis --annotations lvis_v1_val.json --engine official

LVIS files give ordinary AP (at most 300 detections per image) and fixed AP side by side; all other formats give COCO's.
Beside AP, which ranks detections, tables say what they are worth as decisions (decisions.json, reliability.png) and, of
a detector, how often true boxes are named right (naming.json, naming.png). predictions.jpg shows some images with what
was found and missed. With --results, pictures need --html and --images, the folder where they are.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ovd.choices import DataFormatName, Engine
from ovd.commands.arguments import add_detector_options, add_format_options, format_options, load_asked, positive_number
from ovd.data.formats.known import FORMATS
from ovd.data.formats.options import FormatOptions
from ovd.evaluation.note import EvaluationNote
from ovd.evaluation.run import evaluate_results_file

OF_A_RUN = ("expert", "same_place", "nearest", "onnx", "size", "device")
"""Options that a results file has no use for."""
WHAT = (
    "run", "annotations", "images", "format",
    *(field.name for field in fields(FormatOptions) if field.name != "attribute"),
    "expert", "same_place", "nearest", "onnx", "size",
)  # fmt: skip
"""Options that say what is evaluated on what."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder or checkpoint folder of a trained detector")
    parser.add_argument("--results", type=Path, help="evaluate this COCO-format results file instead of a detector")
    parser.add_argument("--annotations", type=Path, help="annotation file (default: the run's validation set)")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--format", choices=get_args(DataFormatName))
    add_format_options(parser, default_split="val")
    add_detector_options(parser)
    parser.add_argument("--onnx", type=Path, help="evaluate this file that ovd export wrote of the RUN")
    parser.add_argument("--engine", choices=get_args(Engine), help="default: that of the run's config, hotcoco")
    parser.add_argument("--output", type=Path, help="folder for the results (default: RUN/eval, "
                        "RUN/eval-NAMES with another data set, experts or size)")  # fmt: skip
    parser.add_argument("--html", action="store_true", help="also write report.html, one page that needs no network: "
                        "classes, curves, confused names, best and worst images")  # fmt: skip
    parser.add_argument("--threads", type=positive_number, default=2, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if (arguments.run is None) == (arguments.results is None):
        parser.error("give either a RUN or --results FILE")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a file; give a folder")
    if arguments.results is not None:
        if useless := [name for name in OF_A_RUN if getattr(arguments, name)]:
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
    from ovd.distributed import process_group  # here, since it takes torch

    with process_group():
        evaluate_run_of(arguments)


def output_folder(arguments: argparse.Namespace) -> Path:
    """The folder for the results of a run; its default name says what differs from an evaluation of the run alone."""
    annotations = arguments.annotations and arguments.annotations.resolve()
    experts = [path.resolve() for path in arguments.expert]
    words = [annotations.parent.name, annotations.stem] if annotations else []
    words += [arguments.onnx.stem] if arguments.onnx else []
    words += [arguments.split] if arguments.split else []
    words += [path.parent.name if path.name == "expert" else path.name for path in experts]
    words += ["nearest"] if arguments.nearest else []
    words += [arguments.same_place] if arguments.same_place else []
    words += [f"size-{arguments.size}"] if arguments.size else []
    return arguments.output or arguments.run / "-".join(["eval", *words])


def _absolute(value: Any) -> Any:
    """A path, or each of a list, from the root of the file system; other values as they are."""
    if isinstance(value, list):
        return sorted(map(str, map(_absolute, value)))
    return value.resolve() if isinstance(value, Path) else value


def evaluate_run_of(arguments: argparse.Namespace) -> None:
    """Evaluate the run on the data set that is named, or on its validation set."""
    import torch  # here, since a results file needs none of these, which take seconds to import

    from ovd.build.data import load_evaluation_index
    from ovd.distributed import is_main
    from ovd.jobs.evaluate import claim_folder, evaluate_run

    annotations, images, format = arguments.annotations, arguments.images, arguments.format
    options = format_options(arguments)
    if annotations is None:
        if images is not None or format is not None or options != FormatOptions():
            raise ValueError("--images, --format and its options need --annotations FILE")
    elif format is None or (images is None and not FORMATS[format].finds_images):
        raise ValueError(f"--annotations needs --images (their folder) and --format ({', '.join(FORMATS)})")
    torch.set_num_threads(arguments.threads)
    if arguments.onnx is not None and arguments.expert:
        raise ValueError("--expert cannot be used with --onnx: an exported detector has no experts")
    output = output_folder(arguments)
    trained = load_asked(arguments)
    index = None
    if annotations is not None:
        index = load_evaluation_index(annotations, images, format, options=options)
    asked = {name: str(value) for name in WHAT if (value := _absolute(getattr(arguments, name)))}
    claim_folder(output, asked)
    evaluate_run(
        trained,
        output=output,
        index=index,
        engine=arguments.engine,
        size=arguments.size,
        html=arguments.html,
        onnx=arguments.onnx,
        note=EvaluationNote(options=asked),
    )
    if not is_main():
        return
    files = ["results.json", "metrics.json", "decisions.json", "per_class.csv", "predictions.jpg"]
    files += ["naming.json"] if arguments.onnx is None and not trained.experts.folders else []
    files += ["report.html"] if arguments.html else []
    print(f"{', '.join(files)} and their plots are in {output}")
