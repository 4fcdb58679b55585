"""Measures and files of an evaluation, whatever made the detections, and the evaluation of results files."""

import importlib
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np

from ovd.choices import DataFormatName, Engine
from ovd.data.annotations import exhaustive_truth, load_annotations, load_truth
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
from ovd.data.formats.supported import FORMATS
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.data.truth import Truth
from ovd.evaluation.coco import COCOEvaluator, exhaustive_metrics
from ovd.evaluation.decision_report import format_decisions, measure_decisions, write_decisions
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.groups import base_and_novel
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.measures import Measures
from ovd.evaluation.note import EvaluationNote, remove_note, write_note
from ovd.evaluation.report import format_table, write_report
from ovd.evaluation.results_file import results_loader
from ovd.files import make_folder
from ovd.shapes import Bool
from ovd.warn import warn

OPTIONAL_FILES = ("naming.json", "naming.png", "report.html", "predictions.jpg")
"""Files that are written only if naming is measured, a page is made or the image files are known."""


def build_box_evaluator(
    truth: Truth, format: DataFormatName, category_ids: tuple[int, ...], *, engine: Engine = "hotcoco"
) -> BoxEvaluator:
    """Make the evaluator of a format's benchmark; see the evaluator classes for arguments and errors."""
    if FORMATS[format].is_federated:
        return LVISEvaluator(truth, category_ids, engine=engine)
    return COCOEvaluator(truth, category_ids, engine=engine, groups=FORMATS[format].groups)


def measure_results(
    evaluator: BoxEvaluator, *, exhaustive: Truth | None, own_threshold: float | None = None
) -> Measures:
    """Compute the metrics of the evaluator's benchmark and judge the decisions.

    For a federated set, an exhaustive truth judges the decisions and adds its own AP (`exhaustive_metrics`).

    Args:
        evaluator: evaluator to which all detections were added.
        exhaustive: the truth with every object of every class (`exhaustive_truth`); None if it is not known.
        own_threshold: the detector's own threshold, at which decisions are judged as well.
    """
    evaluation, results = evaluator.evaluate(), evaluator.results()
    truth = evaluator.truth  # if the benchmark has groups of classes, only their part of the file
    if truth.is_federated and exhaustive is not None:
        truth = exhaustive
        section = exhaustive_metrics(truth, results, engine=evaluator.engine)
        evaluation = replace(evaluation, sections=(*evaluation.sections, section))
    is_class = _class_mask(truth)
    groups = {name: mask & is_class for name, mask in base_and_novel(truth.categories, evaluator.named_groups).items()}
    decisions = measure_decisions(truth, results, groups, own_threshold=own_threshold)
    return Measures(evaluation, decisions, truth, results, groups)


def print_measures(measures: Measures) -> None:
    """Print the tables of the metrics, with their protocols, and of the decisions."""
    print(format_table(measures.evaluation))
    print(format_decisions(measures.decisions))


def write_measures(
    measures: Measures,
    output_dir: Path,
    *,
    index: AnnotationIndex | None = None,
    note: EvaluationNote | None = None,
) -> None:
    """Write the files of an evaluation, after removing those of an earlier one that might not be replaced.

    Args:
        index: annotations with the paths of the images; None writes no predictions.jpg.
        note: note of this evaluation, written before the other files; None removes an earlier note.

    Raises:
        OSError: a file cannot be written. If predictions.jpg cannot, this is only a warning.
    """
    (output_dir / "metrics.json").unlink(missing_ok=True)  # first, so that a new note never stands beside old metrics
    if note is None:
        remove_note(output_dir)
    else:
        write_note(output_dir, note)
    for name in OPTIONAL_FILES:
        (output_dir / name).unlink(missing_ok=True)
    write_report(measures.evaluation, output_dir)
    write_decisions(measures.decisions, output_dir)
    if index is None:
        return
    from ovd.evaluation.prediction_grid import write_prediction_grid  # here, since it imports Pillow and torchvision

    try:
        write_prediction_grid(measures, index, output_dir)
    except OSError as error:
        warn(f"{output_dir}: predictions.jpg cannot be written ({error})")


def _class_mask(truth: Truth) -> Bool[np.ndarray, " C"]:
    """Return which categories are classes, not just parents of other categories without a box of their own.

    An index, and so a detector, has no such parents, but a results file may contain their ids.
    """
    is_parent = np.array([category.is_parent for category in truth.categories], bool)
    return ~is_parent | (truth.num_boxes_of_categories() > 0)


def evaluate_results_file(
    annotations: Path,
    results: Path,
    format: DataFormatName,
    engine: Engine = "hotcoco",
    output_dir: Path | None = None,
    *,
    images: Path | None = None,
    options: FormatOptions = NO_OPTIONS,
    html: bool = False,
) -> dict[str, float]:
    """Evaluate a results file: print metrics and decisions, write the report's files and return the metrics.

    Args:
        annotations: annotations of the evaluated data set, as `load_annotations` takes them.
        results: file in COCO results format, see `ovd.evaluation.results_file`.
        output_dir: folder of the report; None writes none.
        images: folder of images, for formats whose boxes depend on the images' sizes (YOLO), and for pictures.
        html: whether to write report.html, too; with pictures if the images are known.

    Raises:
        ValueError: a file is faulty (names it and the record), `html` is given without `output_dir`, this folder
            cannot be made or written to, or `images` is no folder.
    """
    if html and output_dir is None:
        raise ValueError("report.html needs a folder; give --output FOLDER")
    if html and images is not None and not images.is_dir():
        raise ValueError(f"--images {images} is not a folder; give the folder of the images that report.html shows")
    index = None
    with results_loader(results) as read:
        if html and (images is not None or FORMATS[format].finds_images):
            index = load_annotations(
                annotations, images, format=format, report=DataReport(stops=False), options=options,
                with_truth=True, with_parents=True,
            )  # fmt: skip
            assert index.truth is not None
            truth = index.truth
        else:
            truth = load_truth(annotations, images, format=format, options=options)
        evaluator = build_box_evaluator(truth, format, (), engine=engine)
        evaluator.add_results(read(), source=str(results))
    exhaustive = exhaustive_truth(truth, format)
    if output_dir is not None:
        make_folder(output_dir, str(output_dir), "; give another --output")  # now, not after minutes of computing
        # Imported while the engine computes, which does not hold the GIL.
        Thread(target=importlib.import_module, args=("matplotlib.figure",), daemon=True).start()
    measures = measure_results(evaluator, exhaustive=exhaustive)
    print_measures(measures)
    if output_dir is not None:
        write_measures(measures, output_dir, index=index)
        if html:
            from ovd.evaluation.html_report import report_data, write_html_report  # here, since it imports Pillow

            write_html_report(report_data(measures, title=results.name, index=index), output_dir)
        page = ", report.html" if html else ""
        print(f"metrics.json, decisions.json, per_class.csv{page} and their plots are in {output_dir}")
    return measures.evaluation.metrics
