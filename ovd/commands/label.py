"""Label your own images with a detector, for a person to correct and a smaller detector to learn from.

    ovd label photos --classes-file words.txt --run runs/quickstart --output boxes.json
    ovd label "photos/*.jpg" --classes "umbrella, anchor:0.8" --output labels --to yolo
    ovd label photos --recursive --classes-file words.txt --output tasks.json --to label_studio

The classes file has one name per line, which may have commas in it. Boxes are kept from the detector's own threshold
on, or from --threshold; a number after a name (anchor:0.8) is that of its boxes.

Formats: `coco` (one JSON file, which ovd trains on and CVAT imports), `label_studio` (JSON tasks with predictions),
`yolo` and `voc` (folders). Scores are kept. Beside the output, NAME.review.html shows the boxes that the detector is
least sure of, to accept, reject and rename, and a report has every image that could not be read. After an interruption
the same command goes on (OUTPUT.partial).
"""

import argparse
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ovd.choices import ExportFormatName
from ovd.commands.arguments import add_detector_options, load_asked, number_from_0_to_1, positive_number, whole_number
from ovd.data.check import describe_findings
from ovd.data.export_boxes import (
    LOCAL_FILES,
    LabelledSet,
    check_files,
    check_names,
    export_boxes,
    is_folder,
    outputs_of,
)
from ovd.data.images.files import images_at, name_below
from ovd.data.report import DataReport
from ovd.data.review_page import write_review
from ovd.files import make_folder_of, refuse_existing, sha256_of

if TYPE_CHECKING:  # torch, which takes seconds to import
    from ovd.build.trained import TrainedDetector
    from ovd.inference import BatchDetector
    from ovd.jobs.queries import Query


def _arguments() -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="folders, files, or patterns in quotes")
    parser.add_argument("--recursive", action="store_true", help="look into the folders below a folder, too")
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes-file", type=Path, help="text file of class names, one per line")
    classes.add_argument("--classes", help="comma-separated class names; NAME:0.8 for a minimum score")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="trained detector (%(default)s)")
    add_detector_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="file or folder to write; must not exist")
    parser.add_argument("--to", choices=get_args(ExportFormatName), default="coco", help="format (%(default)s)")
    parser.add_argument("--threshold", type=number_from_0_to_1, help="minimum score (default: the detector's own)")
    parser.add_argument("--overlapping", action="store_true", help="keep every box above the threshold (default: of "
                        "boxes that overlap by IoU 0.5 only the best, whatever their names)")  # fmt: skip
    parser.add_argument("--review", type=whole_number, default=200, metavar="N",
                        help="boxes shown on the page to review; 0 for no page (%(default)s)")  # fmt: skip
    parser.add_argument("--copy-images", action="store_true", help="yolo: copy the images instead of linking to them")
    parser.add_argument("--image-url", default=LOCAL_FILES, metavar="PREFIX",
                        help="label_studio: what stands before an image's name (%(default)s)")  # fmt: skip
    parser.add_argument("--batch-size", type=positive_number, default=8, help="images at a time (%(default)s)")
    parser.add_argument("--workers", type=whole_number, default=2, help="processes that read images (%(default)s)")
    parser.add_argument("--threads", type=positive_number, default=2, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.copy_images and arguments.to != "yolo":
        parser.error(f"--copy-images is for --to yolo; {arguments.to} has no images")
    if arguments.image_url != LOCAL_FILES and arguments.to != "label_studio":
        parser.error(f"--image-url is for --to label_studio; {arguments.to} has no addresses")
    return arguments


def asked_classes(arguments: argparse.Namespace) -> "list[Query]":
    """What --classes or --classes-file asks for.

    Raises:
        ValueError: no name, or one that cannot be written.
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
    queries = asked_classes(arguments)
    names = [query.name for query in queries]
    output: Path = arguments.output
    base = output if is_folder(arguments.to) else output.with_suffix("")
    review = base.with_name(f"{base.name}.review.html") if arguments.review else None
    report_file = output.with_name(f"{output.name}.report.json")
    partial = output.with_name(f"{output.name}.partial")
    # What an interrupted call left beside its journal is written again.
    beside = [] if partial.exists() else [report_file, *([review] if review else [])]
    for path in (*outputs_of(output, arguments.to), *beside):
        refuse_existing(path)
    make_folder_of(output)
    root, paths = images_at(arguments.images, recursive=arguments.recursive)
    check_files([name_below(root, path) for path in paths], arguments.to)

    import torch

    from ovd.build.trained import build_inference
    from ovd.data.loading.loader import Loading
    from ovd.jobs.label import Thresholds, label_images
    from ovd.jobs.label_journal import LabelJournal

    torch.set_num_threads(arguments.threads)
    trained = load_asked(arguments)
    inference = build_inference(trained, size=arguments.size)
    threshold = inference.shown_threshold if arguments.threshold is None else arguments.threshold
    thresholds = [query.threshold(threshold) for query in queries]
    report = DataReport(stops=False)
    settings = _settings(arguments, trained, inference, root, names, thresholds)
    with LabelJournal(partial, settings) as journal:
        if journal.goes_on:
            print(_printable(f"goes on from {partial}"))
        labels = label_images(
            trained,
            inference,
            root,
            paths,
            Thresholds(dict(zip(names, thresholds, strict=True)), overlapping=arguments.overlapping),
            report,
            journal,
            Loading(arguments.batch_size, arguments.workers),
        )
        kind = "probability" if inference.is_calibrated else "score"
        report.write(report_file)
        shown = 0
        if review is not None:
            shown = write_review(
                labels.kept,
                labels.below,
                thresholds,
                review,
                limit=arguments.review,
                title=_printable(output.name),
                saved_as=_printable(f"{base.name}.reviewed.json"),
                kind=kind,
            )
        export_boxes(
            labels.kept,
            output,
            arguments.to,
            source=f"ovd {arguments.run.name}",
            copy_images=arguments.copy_images,
            image_url=arguments.image_url,
        )
        journal.remove()
    print(_printable(_summary(labels.kept, report, f"{kind} of at least {threshold:.2f}", output)))
    if review is not None:
        print(_printable(f"{review} shows the {shown} boxes nearest to the threshold"))


def _printable(text: str) -> str:
    """A text in which names of files that are not UTF-8 are spelled out."""
    return text.encode(errors="backslashreplace").decode()


def _settings(
    arguments: argparse.Namespace,
    trained: "TrainedDetector",
    inference: "BatchDetector",
    root: Path,
    names: list[str],
    thresholds: list[float],
) -> dict[str, Any]:
    """All that the boxes of an image depend on."""
    from ovd.engine.checkpoint import MANIFEST
    from ovd.experts.folder import DESCRIPTION, find_expert

    assert trained.weights is not None
    return {
        "ovd": version("ovd"),
        "checkpoint": sha256_of(trained.weights.parent / MANIFEST),
        "experts": [sha256_of(find_expert(folder) / DESCRIPTION) for folder in trained.experts.folders],
        "same_place": arguments.same_place,
        "nearest": arguments.nearest,
        "names": names,
        "thresholds": thresholds,
        "overlapping": arguments.overlapping,
        "size": arguments.size,
        "root": str(root),
        "precision": "bf16" if inference.low_precision else "float32",
    }


def _summary(kept: LabelledSet, report: DataReport, limit: str, output: Path) -> str:
    """What was found and written, in a few lines."""
    counts = Counter(kept.names[name] for image in kept.images for name in image.classes.tolist())
    without = sum(len(image.boxes) == 0 for image in kept.images)
    lines = list(describe_findings(report))
    lines += [f"{count:>8,}  {name}" for name, count in counts.most_common(20)]
    if len(counts) > 20:
        lines.append(f"          and {len(counts) - 20} more classes")
    num_unread = report.num_seen() - report.num_used()
    unread = f"; {num_unread:,} images could not be read: {output.name}.report.json" if num_unread else ""
    lines.append(
        f"{output}: {len(kept.images):,} images, {kept.num_boxes:,} boxes of {len(counts):,} classes with a {limit}, "
        f"{without:,} images without any{unread}; file names start at {kept.root}"
    )
    return "\n".join(lines)
