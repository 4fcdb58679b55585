"""The evaluation of detections, whatever found them: all measures and files, and those of a results file."""

import importlib
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np

from ovd.choices import DataFormatName, Engine
from ovd.data.annotations import exhaustive_truth, load_annotations, load_truth
from ovd.data.formats.known import FORMATS
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
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
from ovd.evaluation.results_file import reading_results
from ovd.shapes import Bool
from ovd.warn import warn

NOT_ALWAYS_WRITTEN = ("naming.json", "naming.png", "report.html", "predictions.jpg")
"""Files of an evaluation that measures naming, makes a page, or knows where the images are."""


def box_evaluator(
    truth: Truth, format: DataFormatName, category_ids: tuple[int, ...], *, engine: Engine = "hotcoco"
) -> BoxEvaluator:
    """The evaluator of a format's benchmark; see the evaluators for arguments and errors."""
    if FORMATS[format].is_federated:
        return LVISEvaluator(truth, category_ids, engine=engine)
    return COCOEvaluator(truth, category_ids, engine=engine, groups=FORMATS[format].groups)


def measure_results(
    evaluator: BoxEvaluator, *, exhaustive: Truth | None, own_threshold: float | None = None
) -> Measures:
    """Compute the metrics of the evaluator's benchmark and judge the decisions.

    Decisions are judged by the exhaustive truth if there is one. A federated set then has its AP, too.

    Args:
        evaluator: has all detections.
        exhaustive: the truth with every object of every class (`exhaustive_truth`); None if it is not known.
        own_threshold: the detector's, at which decisions are judged as well.
    """
    evaluation, results = evaluator.evaluate(), evaluator.results()
    truth = evaluator.truth  # of a benchmark with groups of classes only their part
    if truth.is_federated and exhaustive is not None:
        truth = exhaustive
        section = exhaustive_metrics(truth, results, engine=evaluator.engine)
        evaluation = replace(evaluation, sections=(*evaluation.sections, section))
    is_class = _are_classes(truth)
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
    """Write the files of an evaluation. Those of an earlier one that would stay beside them are removed first.

    Args:
        index: where the images are; None draws no predictions.jpg.
        note: of these files, before others follow; None leaves the folder without one.

    Raises:
        OSError: a file cannot be written. That of predictions.jpg is a warning.
    """
    (output_dir / "metrics.json").unlink(missing_ok=True)  # before the note that says what it is of
    if note is None:
        remove_note(output_dir)
    else:
        write_note(output_dir, note)
    for name in NOT_ALWAYS_WRITTEN:
        (output_dir / name).unlink(missing_ok=True)
    write_report(measures.evaluation, output_dir)
    write_decisions(measures.decisions, output_dir)
    if index is None:
        return
    from ovd.evaluation.prediction_grid import write_prediction_grid  # here, since it brings Pillow and torchvision

    try:
        write_prediction_grid(measures, index, output_dir)
    except OSError as error:
        warn(f"{output_dir}: predictions.jpg cannot be written ({error})")


def _are_classes(truth: Truth) -> Bool[np.ndarray, " C"]:
    """Which categories are not but the parent of others, without a box; an index, and so a detector, has none of these,
    but a results file may name its id."""
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
    """Prints the metrics with their protocols and the decisions, writes their files and returns the metrics.

    Args:
        annotations: the data set that was detected in, as `load_annotations` takes it.
        results: file in COCO results format, see `ovd.evaluation.results_file`.
        output_dir: where the report goes; None writes none.
        images: folder of images, for formats whose boxes depend on the images' sizes (YOLO), and for pictures.
        html: whether to write report.html, too; with pictures where the images are known.

    Raises:
        ValueError: a faulty file; names it and the record. A page without a folder to write it to.
    """
    if html and output_dir is None:
        raise ValueError("the page needs a folder; give --output FOLDER")
    index = None
    if html and (images is not None or FORMATS[format].finds_images):
        index = load_annotations(
            annotations, images, format=format, report=DataReport(stops=False), options=options, with_truth=True
        )
    with reading_results(results) as read:
        truth = load_truth(annotations, images, format=format, options=options)
        evaluator = box_evaluator(truth, format, (), engine=engine)
        evaluator.add_results(read(), source=str(results))
    exhaustive = exhaustive_truth(truth, format)
    if output_dir is not None:  # the engine leaves Python free, meanwhile, to import what draws
        Thread(target=importlib.import_module, args=("matplotlib.figure",), daemon=True).start()
    measures = measure_results(evaluator, exhaustive=exhaustive)
    print_measures(measures)
    if output_dir is not None:
        write_measures(measures, output_dir, index=index)
        if html:
            from ovd.evaluation.html_report import report_data, write_html_report  # here, since it brings Pillow

            write_html_report(report_data(measures, title=results.name, index=index), output_dir)
        page = ", report.html" if html else ""
        print(f"metrics.json, decisions.json, per_class.csv{page} and their plots are in {output_dir}")
    return measures.evaluation.metrics
