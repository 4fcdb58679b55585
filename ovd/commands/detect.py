"""Detect classes of any name in images and videos.

    ovd detect photo.jpg --classes "umbrella, anchor:0.8, coffee cup" --run runs/quickstart
    ovd detect photos 'more/*.png' --classes-file words.txt --write coco --output boxes.json
    ovd detect film.mp4 --classes "person, bicycle" --track
    cat photo.jpg | ovd detect - --classes umbrella --write lines
    ovd detect photos --classes "umbrella" --prompt gadget=shop.jpg:40,30,120,90 --prompt gadget=other.jpg

A source is an image, a video, a folder with images and videos in it or below, a pattern, or - for an image on standard
input. A number after a name is the minimum score of its boxes. Without one it is --threshold, which is by default that
of the detector: scores of a detector that was calibrated (train.calibration) are probabilities.

--prompt asks by an example: a picture, or the box x,y,width,height of one. Several of one name count together, and if
the name is among --classes its text counts, too.

Writes photo.detections.png and photo.detections.json beside the image (or into --output); of a video
film.detections.mp4 and film.detections.jsonl, with a line per frame. --write coco gives one file in COCO's form for all
sources, --write lines a line of JSON per picture on standard output. What cannot be read is counted, and the others go
on. Videos need the extra `video`: pip install 'ovd[video]'.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from ovd.build.arguments import add_expert_options, expert_group
from ovd.build.detector import load_detector
from ovd.build.prompts import Example, Prompt
from ovd.cli import EXIT_BAD_INPUT
from ovd.data.media import Picture, find_media
from ovd.data.report import DataReport
from ovd.data.text_files import read_lines
from ovd.jobs.detect import CocoFile, JsonLines, Output, PictureFiles, detect_in
from ovd.predictor import Predictor
from ovd.structures import Detections
from ovd.visualize import choose_shown


def split_query(query: str) -> tuple[str, float | None]:
    """The name of a query such as `anchor:0.8`, and its minimum score, if it has one.

    Raises:
        ValueError: no name, or a minimum that is not in 0..1.
    """
    name, separator, minimum = query.rpartition(":")
    if not separator:
        return query.strip(), None
    try:
        value = float(minimum)
    except ValueError:
        return query.strip(), None  # a colon in the name
    if not 0 <= value <= 1 or not name.strip():
        raise ValueError(f"{query.strip()!r}: write it as NAME:0.8, with a minimum score from 0 to 1")
    return name.strip(), value


def read_example(word: str) -> tuple[str, Example]:
    """The name and the example of `NAME=IMAGE`, or of `NAME=IMAGE:x,y,width,height`.

    Raises:
        ValueError: it is not of that form.
    """
    name, equals, rest = word.partition("=")
    if not equals or not name.strip() or not rest:
        raise ValueError(f"--prompt {word}: write it as NAME=IMAGE or NAME=IMAGE:x,y,width,height")
    found = re.fullmatch(r"(.+):([^:/]+,[^:/]+,[^:/]+,[^:/]+)", rest)
    if found is None:
        return name.strip(), Example(rest)
    try:
        x, y, width, height = map(float, found[2].split(","))
    except ValueError:
        raise ValueError(f"--prompt {word}: {found[2]} is not a box x,y,width,height in pixels") from None
    return name.strip(), Example(found[1], (x, y, x + width, y + height))


def with_examples(
    asked: list[tuple[str, float | None]], words: list[str]
) -> tuple[list[str | Prompt], list[float | None]]:
    """What is asked for, and the minimum scores: names, names with examples, and examples alone."""
    examples: dict[str, list[Example]] = {}
    for name, example in map(read_example, words):
        examples.setdefault(name, []).append(example)
    by_name = [Prompt(name, (name,), tuple(examples.pop(name))) if name in examples else name for name, _ in asked]
    alone = [Prompt(name, images=tuple(own)) for name, own in examples.items()]
    return [*by_name, *alone], [*(minimum for _, minimum in asked), *(None for _ in alone)]


def asked_classes(arguments: argparse.Namespace) -> list[tuple[str, float | None]]:
    """Names and minimum scores of --classes and --classes-file.

    Raises:
        ValueError: there is none and no --prompt, or a minimum score is wrong.
    """
    if arguments.classes is None and arguments.classes_file is None:
        if arguments.prompt:
            return []
        raise ValueError("say what to look for: --classes 'umbrella, anchor', or --classes-file with a name per line")
    asked = [split_query(query) for query in (arguments.classes or "").split(",") if query.strip()]
    if arguments.classes_file is not None:
        asked += [split_query(line) for _, line in read_lines(arguments.classes_file)]
    if not asked:
        where = arguments.classes_file or f"--classes {arguments.classes!r}"
        raise ValueError(f"{where} has no class name; write it as --classes 'umbrella, anchor'")
    return asked


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="image, video, folder, pattern, or - for stdin")
    parser.add_argument("--classes", help="comma-separated class names, any words; NAME:0.8 for a minimum score")
    parser.add_argument("--classes-file", type=Path, help="the same, one per line; a name may have commas")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=IMAGE[:x,y,w,h]",
        help="an example of a class: an image, or a box in it; repeatable",
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="trained detector (%(default)s)")
    add_expert_options(parser)
    parser.add_argument("--threshold", type=float, help="minimum score shown (default: the detector's own)")
    parser.add_argument("--top", type=int, default=100, help="maximum number of boxes per picture (%(default)s)")
    parser.add_argument("--overlapping", action="store_true", help="show several classes at the same place")
    parser.add_argument("--track", action="store_true", help="number the objects of a video through its frames")
    parser.add_argument("--size", type=int, help="longest image side in pixels (default: as trained)")
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: as trained)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--write", choices=["pictures", "coco", "lines"], default="pictures", help="what is written (%(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="pictures: folder (default: beside each source); coco: file (detections.json); lines: file (standard "
        "output)",
    )
    return parser


def output_of(arguments: argparse.Namespace, sources: list[str], names: list[str]) -> Output:
    """What writes the results, as the arguments say.

    Raises:
        ValueError: the files of two sources would have the same name.
    """
    match arguments.write:
        case "coco":
            return CocoFile(arguments.output or Path("detections.json"), names)
        case "lines":
            return JsonLines(arguments.output, names)
        case _:
            return PictureFiles(sources, names, arguments.output)


def main() -> None:
    arguments = parser().parse_args()
    asked, sources = asked_classes(arguments), find_media(arguments.sources)
    prompts, minima = with_examples(asked, arguments.prompt)
    names = [prompt if isinstance(prompt, str) else prompt.name for prompt in prompts]
    output = output_of(arguments, sources, names)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    predictor = Predictor(
        load_detector(arguments.run, arguments.device, experts=expert_group(arguments)), size=arguments.size
    )
    threshold = predictor.threshold if arguments.threshold is None else arguments.threshold
    thresholds = [threshold if own is None else own for own in minima]
    is_data = arguments.write == "lines" and arguments.output is None  # on standard output, which has nothing else
    num_boxes = 0

    def detect(picture: Picture) -> Detections:
        nonlocal num_boxes
        found = choose_shown(
            predictor(picture.pixels, prompts), thresholds, most=arguments.top, overlapping=arguments.overlapping
        )
        num_boxes += len(found.scores)
        if sources == [picture.source] and picture.frame is None and not is_data:
            for box, score, row in zip(
                found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
            ):
                print(f"{score:.2f}  {names[row]:<24} {[round(value, 1) for value in box]}")
        return found

    report = detect_in(sources, detect, output, track_above=threshold if arguments.track else None)
    kind = "probability" if predictor.is_calibrated else "score"
    own = ", or the one after its name" if any(minimum is not None for minimum in minima) else ""
    text = f"{num_boxes} objects with a {kind} of at least {threshold:.2f}{own}{where_written(output, arguments)}"
    print(text, file=sys.stderr if is_data else sys.stdout)
    report_unread(report, len(sources))


def where_written(output: Output, arguments: argparse.Namespace) -> str:
    """The end of the last line."""
    if isinstance(output, PictureFiles):
        if len(output.written) == 1:
            return f"; see {output.written[0]}"
        return f" in {len(output.written)} sources; see {arguments.output or 'the files beside them'}"
    if isinstance(output, CocoFile):
        return f"; see {arguments.output or 'detections.json'}"
    return ""


def report_unread(report: DataReport, num_sources: int) -> None:
    """Says what could not be read; exits with 2 if that is all."""
    num_unread = report.num_seen() - report.num_used()
    if num_unread == 0:
        return
    print(f"{num_unread} of {num_sources} sources could not be read:", file=sys.stderr)
    for records in report.first_records().values():
        print(*(f"    {record}" for record in records), sep="\n", file=sys.stderr)
    if report.num_used() == 0:
        raise SystemExit(EXIT_BAD_INPUT)
