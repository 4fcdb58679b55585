"""Plots of tables of runs: every seed of every row, and AP and naming over the training length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ovd.ablation.records import Record
from ovd.ablation.statistics import estimate, metric_values, records_by_seed, row_estimate
from ovd.visualize.figure import write_figure
from ovd.visualize.palette import PALETTE

ROW_PANELS = {
    "APr": "APr: rare classes, not trained on",
    "AP": "AP: all classes",
    "coco_AP": "AP, set in COCO's style",
    "o365_AP": "AP, set in Objects365's style",
}
LENGTH_PANELS = {
    "APr": "APr: rare classes, not trained on",
    "naming_rare": "true boxes of rare classes named right",
    "APc": "APc: common classes",
    "APf": "APf: frequent classes",
}


@dataclass(frozen=True)
class Panel:
    """The panel of one metric."""

    title: str
    values: Mapping[str, Mapping[int, float]]
    """Values in percent by row and seed; NaN if unknown."""


def draw_rows(records: Sequence[Record], titles: Mapping[str, str], image: Path) -> None:
    """Draw a panel for each metric of `ROW_PANELS` (see `draw_panels`).

    Args:
        records: at most one record per row and seed.
        titles: titles of the rows by name, from top to bottom; a row without a record keeps its place.
    """
    panels = []
    for metric, title in ROW_PANELS.items():
        by_row = {row: records_by_seed(records, row) for row in titles}
        values = {
            row: dict(zip(of_row, (100 * metric_values(list(of_row.values()), metric)).tolist(), strict=True))
            for row, of_row in by_row.items()
        }
        panels.append(Panel(title, values))
    draw_panels(panels, titles, image)


def draw_panels(panels: Sequence[Panel], titles: Mapping[str, str], image: Path, *, joined: bool = True) -> None:
    """Draw a panel per metric: a dot per seed, each row's mean and, from three seeds on, its 95 % interval.

    The intervals include the variation between worlds; only paired differences (tables.py) compare two rows.

    Args:
        titles: titles of the rows by name, from top to bottom; a row without a value keeps its place.
        joined: whether the dots of a seed are joined by a line.
    """
    seeds = sorted({seed for panel in panels for of_row in panel.values.values() for seed in of_row})
    figure = Figure(figsize=(max(10, 3.5 + 2.4 * len(panels)), 1.6 + 0.4 * len(titles)), layout="constrained")
    every_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(every_axes, panels, strict=True):
        _draw_panel(axes, panel, list(titles), seeds, joined=joined)
    every_axes[0].set_yticks(range(len(titles)), list(titles.values()))
    every_axes[0].set_ylim(len(titles) - 0.5, -0.5)  # the first row on top
    figure.legend(*every_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    write_figure(figure, image, dpi=110)


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[str], seeds: Sequence[int], *, joined: bool) -> None:
    places = range(len(rows))
    for number, seed in enumerate(seeds):
        values = [panel.values.get(row, {}).get(seed, np.nan) for row in rows]
        color, marker = PALETTE[number % len(PALETTE)], "os^vX"[number % 5]
        if joined:
            axes.plot(values, places, color=color, lw=0.8, alpha=0.4)
        axes.plot(values, places, marker, color=color, ms=5, label=f"seed {seed}")
    for place, row in enumerate(rows):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.05, lw=0)
        of_seeds = np.array(list(panel.values.get(row, {}).values()), dtype=np.float64)
        if len(of_seeds) and not np.isnan(of_seeds).any():
            of_row = estimate(of_seeds)
            if of_row.interval is not None and of_row.num_values > 2:
                axes.plot(of_row.interval, [place + 0.28] * 2, color="black", lw=1.5)
            axes.plot(of_row.mean, place + 0.28, "D", color="black", ms=4.5)
    axes.plot([], [], "D-", color="black", ms=4.5, label="mean, 95 % interval")
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel("percent")
    axes.grid(axis="x", alpha=0.3)


def draw_lengths(records: Sequence[Record], titles: Mapping[str, str], image: Path) -> None:
    """Draw a panel for each metric of `LENGTH_PANELS` over optimizer steps.

    A thick line is a row's mean over the seeds; each run is a dot, and the dots of a seed are joined.

    Args:
        records: at most one record per row, number of steps and seed.
        titles: titles of the rows by name.
    """
    lengths = sorted({record.steps for record in records})
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(LENGTH_PANELS))
    for axes, (metric, title) in zip(panels, LENGTH_PANELS.items(), strict=True):
        for number, (row, name) in enumerate(titles.items()):
            color, style = PALETTE[number % len(PALETTE)], ("-", "--", "-.", ":")[number % 4]
            row_records = [record for record in records if record.row == row]
            estimates = [row_estimate([r for r in row_records if r.steps == steps], row, metric) for steps in lengths]
            means = [np.nan if of_length is None else 100 * of_length.mean for of_length in estimates]
            axes.plot(lengths, means, style, color=color, lw=2.2, label=name)
            for seed in {record.seed for record in row_records}:
                seed_records = sorted((r for r in row_records if r.seed == seed), key=lambda record: record.steps)
                values = 100 * metric_values(seed_records, metric)
                axes.plot([r.steps for r in seed_records], values, "o-", color=color, lw=0.7, ms=4, alpha=0.45)
        axes.set(xlabel="optimizer steps", xscale="log")
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(lengths, [f"{steps:,}" for steps in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("percent")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    write_figure(figure, image, dpi=110)
