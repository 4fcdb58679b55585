"""report.html: the results of an evaluation in one page that opens from disk and needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.index import AnnotationIndex
from ovd.evaluation.confusions import Confusion, most_confused, names_at_true_boxes
from ovd.evaluation.decision_report import DecisionReport, format_score
from ovd.evaluation.decisions import MIN_DECISION_SCORE, NUM_BINS, Decisions
from ovd.evaluation.groups import NAME_OF_FREQUENCY
from ovd.evaluation.image_classes import ImageClassPairs
from ovd.evaluation.measures import Measures
from ovd.evaluation.report import ClassRow, Curve
from ovd.evaluation.report_pictures import build_pictures
from ovd.files import atomic_write
from ovd.format_count import format_count
from ovd.html_page import fill_page
from ovd.shapes import Float64

REPORT_PAGE = "report.html"
_NUM_CURVES = 5
"""Maximum number of curves of all classes and of groups; the sixth color is left for a chosen class."""


def write_html_report(data: Mapping[str, Any], folder: Path) -> Path:
    """Write the page, replacing that of an earlier evaluation, and return its path.

    Args:
        data: content of the page (`report_data`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / REPORT_PAGE) as file:
        file.write(fill_page("evaluation", title=f"{data['title']}: evaluation", data=data))
    return folder / REPORT_PAGE


def report_data(
    measures: Measures,
    *,
    title: str,
    index: AnnotationIndex | None = None,
    naming: Sequence[Confusion] | None = None,
    is_trained: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Return the content of the page in the form that its script reads.

    Args:
        title: title of the page: the name of the run or of the results file.
        index: annotations with the paths of the images; None leaves out the pictures.
        naming: confusions in the naming of true boxes (`NamingReport.confusions`); None if it was not measured.
        is_trained: whether each category's name was trained on; None if it is not known.
    """
    evaluation, decisions = measures.evaluation, measures.decisions
    num_images = format_count(len(measures.truth.images), "image")
    names = _groups_of_classes(measures)
    found = most_confused(names_at_true_boxes(decisions.verdicts, measures.truth), measures.truth.categories)
    return {
        "title": title,
        "source": f"{measures.truth.path}: {num_images}, {format_count(len(evaluation.classes), 'class', 'classes')}",
        "engine": evaluation.engine,
        "notes": list(evaluation.notes),
        "protocols": [
            {
                "protocol": section.protocol,
                "metrics": [[name, round(value, 5)] for name, value in section.metrics.items()],
            }
            for section in evaluation.sections
        ],
        "groups": sorted(set(filter(None, names)), key=names.index),
        "classes": _classes(measures, names, is_trained),
        "curves": [
            {"label": curve.label, "precision": _per_mille(curve.precision)}
            for curve in _curves(measures)[:_NUM_CURVES]
        ],
        "class_curves": [_per_mille(precision) for precision in evaluation.class_precision],
        **build_pictures(measures, index),
        "confusions": _confusions(naming, found, _threshold_words(decisions)),
        "decisions": _decisions(decisions),
        "reliability": {
            "note": f"All detections of at least {MIN_DECISION_SCORE}, in {NUM_BINS} bins of equal count: their mean "
            "score, and how many of them overlap a true box of their class at IoU 0.5. On the dashed line scores are "
            "probabilities.",
            "groups": [
                {
                    "group": item.group,
                    "error": item.reliability.error,
                    "scores": item.reliability.scores.round(4).tolist(),
                    "outcomes": item.reliability.outcomes.round(4).tolist(),
                }
                for item in decisions.groups
            ],
        },
    }


def _classes(measures: Measures, groups: Sequence[str], is_trained: Sequence[bool] | None) -> list[list[Any]]:
    """Return a row per class: name, group, trained on, boxes, detections, AP, AP50, AR, images with a false alarm."""
    alarms = _false_alarms(measures)

    def row(number: int, item: ClassRow) -> list[Any]:
        figures = [round(value, 4) for value in (item.AP, item.AP50, item.AR)]
        trained = None if is_trained is None else is_trained[number]
        counts = [item.num_true_boxes, item.num_detections]
        return [item.name, groups[number], trained, *counts, *figures, alarms[number]]

    return [row(number, item) for number, item in enumerate(measures.evaluation.classes)]


def _groups_of_classes(measures: Measures) -> list[str]:
    """Return the LVIS frequency of each class, or else its group in the benchmark, or else an empty string."""
    names = [NAME_OF_FREQUENCY.get(item.frequency, "") for item in measures.evaluation.classes]
    if any(names):
        return names
    benchmark_groups = {name: mask for name, mask in measures.groups.items() if name != "all"}
    return [next((name for name, mask in benchmark_groups.items() if mask[row]), "") for row in range(len(names))]


def _false_alarms(measures: Measures) -> list[int]:
    """Count, for each class, the images in which it is reported but known to be absent."""
    verdicts, pairs = measures.decisions.verdicts, ImageClassPairs(measures.truth)
    absent = verdicts.reported.take(verdicts.is_absent)
    numbers = np.unique(pairs.numbers(absent.image_ids, absent.category_ids))
    return np.bincount(pairs.class_rows(numbers), minlength=pairs.num_classes).tolist()


def _curves(measures: Measures) -> list[Curve]:
    """Return the evaluation's curves and those of a benchmark's groups of classes."""
    evaluation = measures.evaluation
    if any(item.frequency for item in evaluation.classes):
        return list(evaluation.curves)
    group_curves = []
    for name, mask in measures.groups.items():
        known = evaluation.class_precision[mask]
        known = known[(known > -1).any(axis=1)]
        if name != "all" and len(known):
            group_curves.append(Curve(f"{name}, IoU 0.50", known.mean(axis=0)))
    return [*evaluation.curves, *group_curves]


def _per_mille(precision: Float64[np.ndarray, " R"]) -> list[int] | None:
    return (1000 * precision).round().astype(int).tolist() if (precision > -1).any() else None


def _threshold_words(decisions: DecisionReport) -> str:
    if decisions.own_threshold is not None:
        return f"the detector's own threshold, {format_score(decisions.own_threshold)}"
    even, odd = map(format_score, decisions.thresholds)
    return f"thresholds of {even} and {odd}, each chosen on the other half of the images"


def _confusions(naming: Sequence[Confusion] | None, found: Sequence[Confusion], threshold: str) -> list[dict[str, Any]]:
    tables = [
        ("Missed boxes found with another name", "A true box that is not found, and the best wrong detection that "
         f"overlaps it at IoU 0.5, at {threshold}.", found),
    ]  # fmt: skip
    if naming is not None:
        note = (
            "The name that the detector gives to every true box, whether it detects the box or not (up to 300 images)."
        )
        tables.insert(0, ("Names of true boxes", note, naming))
    return [
        {"title": title, "note": note, "rows": [[item.name, item.named, item.count, item.of] for item in rows]}
        for title, note, rows in tables
    ]


def _decisions(report: DecisionReport) -> dict[str, Any]:
    def row(group: str, at: str, made: Decisions) -> dict[str, Any]:
        return {
            "group": group,
            "at": at,
            "cgF1": made.cgF1,
            "pmF1": made.pmF1,
            "IL_MCC": made.IL_MCC,
            "absent": made.absent_per_image,
        }

    even, odd = map(format_score, report.thresholds)
    rows = [row(item.group, "chosen", item.decisions) for item in report.groups]
    rows += [row(item.group, "own", item.at_own_threshold) for item in report.groups if item.at_own_threshold]
    own = "" if report.own_threshold is None else f" Own: the detector's, {format_score(report.own_threshold)}."
    warning = "" if report.warning is None else f"Warning: {report.warning}. "
    return {
        "note": f"{warning}Detections above a threshold as decisions, judged for {report.judged}. Chosen: {even} "
        f"for one half of the images, {odd} for the other, each the best for {report.chosen_on} classes on the "
        f"other half.{own}",
        "groups": rows,
    }
