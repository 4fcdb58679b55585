"""`curves.png` of a run folder, drawn from the records of its log."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ovd.metric import is_known
from ovd.visualize.figure import write_figure
from ovd.visualize.palette import PALETTE

GATE_QUANTITIES = {"added": "learned / shortcut", "gate": "mean |gate|", "filter": "mean |filter weight|"}
"""Labels of the quantities in `gate_statistics`, by the name that the log has for them."""

LINE_STYLES = ("-", "--", ":", "-.")
"""Line styles; a panel with more lines than colors uses the next one for each round of colors."""
LEGEND_ROWS = 13
"""Number of rows of a legend beside a panel, as many as fit its height."""


def draw_training_curves(records: list[dict[str, Any]], image: Path) -> None:
    """Draw log records: losses, learning rate and, if any were logged, evaluation metrics and the gates.

    Losses are running means over 2 % of the steps.
    """
    training = [record for record in records if record["kind"] == "train"]
    evaluations = sorted((record for record in records if record["kind"] == "evaluation"), key=lambda r: r["step"])
    gates = [record for record in records if record["kind"] == "gates"]
    heights = [3, 1] + [3] * (bool(evaluations) + bool(gates))
    figure = Figure(figsize=(9, 2 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, lr_axes, *further_axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    window = max(1, len(training) // 50)
    _plot_by_name(loss_axes, training, "losses", window=window)
    loss_axes.set_ylabel(f"loss, mean of {window} steps" if window > 1 else "loss")
    lr_axes.plot([record["step"] for record in training], [record["lr"] for record in training], color=PALETTE[0])
    lr_axes.set_ylabel("learning rate")
    if evaluations:
        _plot_by_name(further_axes[0], evaluations, "metrics", window=1, marker=".")
        further_axes[0].set_ylabel("evaluation metrics")
    if gates:
        _plot_by_name(further_axes[-1], gates, "gates", window=1, marker="." if len(gates) == 1 else "")
        _style_gates(further_axes[-1])
        further_axes[-1].set_ylabel("gated shortcuts")
    figure.axes[-1].set_xlabel("step")
    write_figure(figure, image)


def _plot_by_name(axes: Any, records: list[dict[str, Any]], field: str, *, window: int, marker: str = "") -> None:
    names = dict.fromkeys(name for record in records for name in record[field])
    for name in names:
        values = [(record["step"], record[field].get(name)) for record in records]
        points = [
            (step, value) for step, value in values if value is not None and (field != "metrics" or is_known(value))
        ]
        if len(points) < window or not points:
            continue
        steps, values = np.array(points, dtype=float).T
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        styles, number = divmod(len(axes.lines), len(PALETTE))
        style = LINE_STYLES[styles % len(LINE_STYLES)]
        axes.plot(steps[window - 1 :], smooth, marker=marker, label=name, color=PALETTE[number], linestyle=style)
    if len(axes.lines) > len(PALETTE):
        _add_legend_beside(axes)
    elif axes.lines:
        axes.legend(loc="best", fontsize="small")


def _add_legend_beside(axes: Any) -> None:
    columns = -(-len(axes.lines) // LEGEND_ROWS)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", ncols=columns, handlelength=3)


def _style_gates(axes: Any) -> None:
    """Set a color per part of the detector and a line style per quantity; lines are named quantity/part."""
    names = [line.get_label().partition("/")[::2] for line in axes.lines]
    quantities = list(dict.fromkeys(quantity for quantity, _ in names))
    parts = list(dict.fromkeys(part for _, part in names))
    for line, (quantity, part) in zip(axes.lines, names, strict=True):
        line.set(
            color=PALETTE[parts.index(part) % len(PALETTE)],
            linestyle=("-", "--", ":")[quantities.index(quantity)],
        )
        line.set_label(f"{GATE_QUANTITIES.get(quantity, quantity)}, {part}")
    if axes.lines:
        _add_legend_beside(axes)
