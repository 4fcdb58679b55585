"""Report of a detector's decisions per group of classes: table, decisions.json and the reliability plot."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ovd.data.truth import Truth
from ovd.evaluation.decisions import MIN_DECISION_SCORE, NUM_BINS, DecisionEvaluator, Decisions, Reliability, Verdicts
from ovd.evaluation.results import Results
from ovd.files import write_json
from ovd.format_count import format_count
from ovd.shapes import Bool
from ovd.visualize.figure import write_figure
from ovd.visualize.palette import group_colors

if TYPE_CHECKING:  # takes a quarter of a second to import
    import matplotlib.figure


@dataclass(frozen=True)
class GroupDecisions:
    """Metrics of the decisions about a group of classes, and reliability of its scores."""

    group: str
    num_classes: int
    decisions: Decisions
    reliability: Reliability
    at_own_threshold: Decisions | None = None
    """Metrics at the detector's own threshold; None if it has none."""


@dataclass(frozen=True)
class DecisionReport:
    """Metrics of the decisions about each group of classes."""

    groups: tuple[GroupDecisions, ...]
    """Groups, `all` first."""
    is_exhaustive: bool
    """Whether all pairs of an image and a class are judged, or only each image's positives and verified negatives."""
    chosen_on: str
    """Group of classes that the thresholds are chosen on."""
    thresholds: tuple[float, float]
    """Thresholds for the images at even and at odd positions by ascending id, each chosen on the other half."""
    num_images: int
    verdicts: Verdicts = field(compare=False, repr=False)
    """Verdicts at the detector's own threshold, or at `thresholds` if it has none."""
    score_range: tuple[float, float]
    """Lowest and highest score of all detections; (0, 1) without any."""
    own_threshold: float | None = None
    """Threshold from the detector's calibration; None if it has none."""

    @property
    def judged(self) -> str:
        """Description of the pairs that are judged."""
        return "all classes in all images" if self.is_exhaustive else "each image's positives and verified negatives"

    @property
    def warning(self) -> str | None:
        """Warning about scores that are no probabilities or are all too low; None for other scores."""
        least, largest = self.score_range
        if least >= 0 and largest < MIN_DECISION_SCORE:
            advice = (
                "Rescale the scores, or calibrate the detector (train.calibration); AP stays the same"
                if self.own_threshold is None
                else "The detector is calibrated, but does not know these classes well"
            )
            return (
                f"all scores are below {MIN_DECISION_SCORE}, the lowest that counts, so these figures are 0. {advice}"
            )
        if least >= 0 and largest <= 1:
            return None
        unmeasured = "; with a score above 1, ECE and Brier are not measured" if largest > 1 else ""
        return (
            f"scores are from {least:.10g} to {largest:.10g}, but decisions and calibration read them as "
            f"probabilities, from 0 to 1, and leave out those below {MIN_DECISION_SCORE}{unmeasured}. Rescale the "
            "scores; AP stays the same"
        )


def measure_decisions(
    truth: Truth,
    results: Results,
    groups: Mapping[str, Bool[np.ndarray, " C"]],
    *,
    own_threshold: float | None = None,
) -> DecisionReport:
    """Judge the detections of a data set as decisions.

    Args:
        truth: an exhaustive or federated truth.
        results: all detections; their images and classes must be in the truth.
        groups: mask of the truth's categories for each group, `all` first. Thresholds are chosen on the classes of
            `base`, or on all classes without it.
        own_threshold: the detector's own threshold, at which decisions are judged as well.
    """
    chosen_on = "base" if "base" in groups else "all"
    evaluator = at_own = DecisionEvaluator(truth, results, base=groups[chosen_on])
    if own_threshold is not None and own_threshold < MIN_DECISION_SCORE:
        at_own = DecisionEvaluator(truth, results, base=groups[chosen_on], floor=own_threshold)
    thresholds = evaluator.thresholds()
    return DecisionReport(
        groups=tuple(
            GroupDecisions(
                group,
                int(mask.sum()),
                evaluator.decide(mask, thresholds),
                evaluator.reliability(mask),
                None if own_threshold is None else at_own.decide(mask, (own_threshold, own_threshold)),
            )
            for group, mask in groups.items()
        ),
        is_exhaustive=not truth.is_federated,
        chosen_on=chosen_on,
        thresholds=thresholds,
        num_images=len(truth.images),
        score_range=(float(results.scores.min()), float(results.scores.max())) if len(results) else (0.0, 1.0),
        verdicts=at_own.verdicts(thresholds if own_threshold is None else (own_threshold, own_threshold)),
        own_threshold=own_threshold,
    )


def format_decisions(report: DecisionReport) -> str:
    """Format a table for a console with a row per group of classes."""
    even, odd = map(format_score, report.thresholds)
    lines = [
        f"Decisions of {format_count(report.num_images, 'image')}, judged for {report.judged}",
        f"{'classes':<8}  {'number':>6}   cgF1  cgF1_50_95   pmF1  IL_MCC  absent/image    ECE  Brier  recall",
    ]
    for item in report.groups:
        made, scores = item.decisions, item.reliability
        lines.append(
            f"{item.group:<8}  {item.num_classes:>6}  {_format_row(made)}  {_cell(scores.error, 5, 3)}  "
            f"{_cell(scores.brier, 5, 3)}  {_cell(scores.recall, 6, 3)}"
        )
    for item in report.groups:
        if item.at_own_threshold is not None:
            lines.append(f"{item.group:<8}  {'own':>6}  {_format_row(item.at_own_threshold)}")
    lines += [
        "",
        "- cgF1 = 100 x pmF1 x IL_MCC, pmF1 over all boxes at IoU 0.5; cgF1_50_95 with its mean over IoU 0.5 to 0.95,",
        "  as in SAM 3",
        f"- thresholds: {even} for one half of the images, {odd} for the other, each the best for "
        f"{report.chosen_on} classes on the other half",
        "- absent/image: mean number of classes per image that are reported but not present",
        f"- ECE ({NUM_BINS} bins of equal count), Brier, recall: over all detections of at least {MIN_DECISION_SCORE}, "
        "right at IoU 0.5",
    ]
    if any(item.decisions.IL_MCC is None for item in report.groups):
        lines.append(
            "- no cgF1 and IL_MCC if the classes are in all judged pairs or in none; thresholds are then those of F1"
        )
    if any(item.decisions.pmF1 is None or item.reliability.recall is None for item in report.groups):
        lines.append("- no pmF1, cgF1 and recall without a true box that counts")
    if report.warning is not None:
        lines.append(f"- WARNING: {report.warning}")
    if report.own_threshold is not None:
        lines.append(f"- own: at the detector's own threshold, {format_score(report.own_threshold)}")
    return "\n".join(lines) + "\n"


def _format_row(made: Decisions) -> str:
    cells = [(made.cgF1, 5, 1), (made.cgF1_50_95, 10, 1), (made.pmF1, 5, 3), (made.IL_MCC, 6, 3)]
    cells.append((made.absent_per_image, 12, 2))
    return "  ".join(_cell(*cell) for cell in cells)


def _cell(value: float | None, width: int, digits: int) -> str:
    return "-".rjust(width) if value is None else f"{value:z{width}.{digits}f}"


def format_score(score: float) -> str:
    """Format a score with three decimals, or by its magnitude if it is no probability and large."""
    return f"{score:.3f}" if abs(score) < 1e6 else f"{score:.3g}"


def write_decisions(report: DecisionReport, folder: Path) -> None:
    """Write decisions.json and reliability.png, replacing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "is_exhaustive": report.is_exhaustive,
        "num_images": report.num_images,
        "chosen_on": report.chosen_on,
        "thresholds": report.thresholds,
        "own_threshold": report.own_threshold,
        "score_range": report.score_range,
        "groups": [
            {
                "group": item.group,
                "num_classes": item.num_classes,
                **asdict(item.decisions),
                "at_own_threshold": None if item.at_own_threshold is None else asdict(item.at_own_threshold),
                "ECE": item.reliability.error,
                "Brier": item.reliability.brier,
                "recall": item.reliability.recall,
                "reliability": {
                    "scores": item.reliability.scores.tolist(),
                    "outcomes": item.reliability.outcomes.tolist(),
                },
            }
            for item in report.groups
        ],
    }
    write_json(folder / "decisions.json", content)
    write_figure(draw_reliability(report), folder / "reliability.png")


def draw_reliability(report: DecisionReport) -> "matplotlib.figure.Figure":
    """Draw the share of right detections over their mean score, a point per bin; on the diagonal scores are
    probabilities.

    A group without detections, or with scores above 1, is named in the legend, but not drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    figure.subplots_adjust(left=0.12, right=0.98, bottom=0.1, top=0.94)  # automatic margins take as long as drawing
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--", label="scores are probabilities")
    colors = group_colors([item.group for item in report.groups])
    for item, color, marker in zip(report.groups, colors, "os^", strict=False):
        scores = item.reliability
        if scores.error is not None:
            label = f"{item.group}, ECE {scores.error:.3f}"
        else:
            label = f"{item.group} ({'scores above 1' if report.score_range[1] > 1 else 'no detection'})"
        axes.plot(scores.scores, scores.outcomes, marker=marker, markersize=4, color=color, label=label)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="mean score of the bin",
        ylabel="share of correct detections (IoU 0.5)",
        aspect="equal",
    )
    axes.set_title(f"Reliability of scores above {MIN_DECISION_SCORE}", fontsize="medium")
    axes.legend(loc="upper left")
    return figure
