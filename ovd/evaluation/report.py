"""Results of an evaluation and their files: metrics, per-class table and precision-recall curves.

Every figure is reported with its protocol: LVIS ordinary AP, LVIS fixed AP and COCO AP are three different metrics.
"""

import csv
from dataclasses import dataclass, field, fields
from itertools import cycle
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ovd.data.truth import Truth
from ovd.evaluation.precision_recall import RECALL_POINTS, PrecisionRecall
from ovd.evaluation.results import Results
from ovd.files import atomic_write, write_json
from ovd.metric import NO_TRUE_BOX, per_cent
from ovd.shapes import Float64
from ovd.visualize.figure import write_figure
from ovd.visualize.palette import group_colors

if TYPE_CHECKING:  # takes a quarter of a second to import
    import matplotlib.figure


@dataclass(frozen=True)
class ProtocolMetrics:
    """Metrics of one protocol, 0 to 1; -1 where there is no true box."""

    protocol: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class ClassRow:
    """Row of one class in the table; AP and AR are -1 if the class has no true box."""

    category_id: int
    name: str
    frequency: str
    """LVIS frequency: r, c or f; empty if the annotation file has none."""
    num_true_boxes: int
    num_detections: int
    """Number of detections within the protocol's limit per image, if it has one over all classes."""
    AP: float
    AP50: float
    AR: float


@dataclass(frozen=True)
class Curve:
    """Precision, averaged over classes, at each of `RECALL_POINTS`; -1 where no class has a true box."""

    label: str
    precision: Float64[np.ndarray, " R"]


@dataclass(frozen=True)
class Evaluation:
    """All results of one evaluation. `classes` and `curves` belong to the first section's protocol."""

    engine: str
    sections: tuple[ProtocolMetrics, ...]
    notes: tuple[str, ...]
    """Notes on what was counted or left out, and on what the annotation file lacks."""
    classes: tuple[ClassRow, ...]
    curves: tuple[Curve, ...]
    class_precision: Float64[np.ndarray, "C R"] = field(
        default_factory=lambda: np.zeros((0, len(RECALL_POINTS))), compare=False, repr=False
    )
    """Precision of each of `classes` at IoU 0.5 and each of `RECALL_POINTS`; -1 without a true box."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all sections; their names differ between protocols."""
        return {name: value for section in self.sections for name, value in section.metrics.items()}


def class_rows(truth: Truth, curves: PrecisionRecall, detections: Results) -> tuple[ClassRow, ...]:
    """Return a row for each category of the annotation file, in ascending order of id."""
    rows = truth.category_rows(detections.category_ids)
    num_detections = np.bincount(rows, minlength=len(truth.categories))
    return tuple(
        ClassRow(category.id, category.name, category.frequency or "", *columns)
        for category, *columns in zip(
            truth.categories,
            truth.num_boxes_of_categories().tolist(),
            num_detections.tolist(),
            curves.class_average_precisions().tolist(),
            curves.class_average_precisions(iou_percent=50).tolist(),
            curves.class_average_recalls().tolist(),
            strict=True,
        )
    )


def format_table(evaluation: Evaluation) -> str:
    """Format the metrics in percent under their protocols, for a console."""
    lines = []
    for section in evaluation.sections:
        cells = [per_cent(value) for value in section.metrics.values()]
        widths = [max(len(name), len(cell)) for name, cell in zip(section.metrics, cells, strict=True)]
        lines += [
            f"{section.protocol} (percent; engine {evaluation.engine})",
            "  ".join(name.rjust(width) for name, width in zip(section.metrics, widths, strict=True)),
            "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)),
            "",
        ]
    return "\n".join([*lines, *(f"- {note}" for note in evaluation.notes)]) + "\n"


def write_report(evaluation: Evaluation, output_dir: Path) -> None:
    """Write metrics.json, metrics.txt, per_class.csv and precision_recall.png, replacing those of an earlier run."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(output_dir / "metrics.txt") as file:
        file.write(format_table(evaluation))
    summary = {
        "engine": evaluation.engine,
        "metrics": evaluation.metrics,
        "protocols": {section.protocol: list(section.metrics) for section in evaluation.sections},
        "notes": evaluation.notes,
    }
    write_json(output_dir / "metrics.json", summary)
    with atomic_write(output_dir / "per_class.csv") as file:
        names = [column.name for column in fields(ClassRow)]
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        table.writerows(map(attrgetter(*names), evaluation.classes))
    write_figure(draw_curves(evaluation), output_dir / "precision_recall.png")


def draw_curves(evaluation: Evaluation) -> "matplotlib.figure.Figure":
    """Draw precision over recall. A curve without any true box is named in the legend, but not drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.1, top=0.93)  # automatic margins take as long as drawing
    axes = figure.subplots()
    colors = group_colors([curve.label for curve in evaluation.curves])
    for curve, color, style in zip(evaluation.curves, colors, cycle(("-", "--", "-.", ":"))):
        if (curve.precision > NO_TRUE_BOX).any():
            axes.plot(RECALL_POINTS, curve.precision, style, color=color, label=curve.label)
        else:
            axes.plot([], [], style, color=color, label=f"{curve.label} (no true box)")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision, mean over classes")
    axes.set_title(evaluation.sections[0].protocol, fontsize="medium")
    axes.legend()
    return figure
