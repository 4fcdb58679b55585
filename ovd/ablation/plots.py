"""Plots of the ablation: every seed of every row, and AP and naming over the length of training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ovd.ablation.records import Record
from ovd.ablation.statistics import known_values, records_by_seed, row_estimate
from ovd.ablation.tables import COMPARED_METRICS, TITLES

LENGTH_PANELS = {
    "APr": "APr: rare classes, not trained on",
    "naming_rare": "true boxes of rare classes named right",
    "APc": "APc: base classes",
    "APf": "APf: base classes",
}


def draw_rows(records: Sequence[Record], rows: Sequence[str], image: Path) -> None:
    """Draw a panel per compared metric: a dot per seed, dots of a seed joined, each row's mean with its 95 % interval.

    The intervals include the variation between worlds; only paired differences (tables.py) compare two rows.

    Args:
        records: at most one per row and seed.
        rows: names from top to bottom; one without a record keeps its place.
    """
    seeds = sorted({record.seed for record in records})
    figure = Figure(figsize=(13, 1.6 + 0.4 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(COMPARED_METRICS), sharey=True)
    places = range(len(rows))
    for axes, metric in zip(panels, COMPARED_METRICS, strict=True):
        by_row = [records_by_seed(records, row) for row in rows]
        for number, seed in enumerate(seeds):
            values = 100 * known_values([by_seed.get(seed) for by_seed in by_row], metric)
            axes.plot(values, places, color=f"C{number}", lw=0.8, alpha=0.4)
            axes.plot(values, places, "o", color=f"C{number}", ms=5, label=f"seed {seed}")
        for place, row in enumerate(rows):
            if place % 2:
                axes.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.05, lw=0)
            estimate = row_estimate(records, row, metric)
            if estimate is not None:
                ends = estimate.interval or (estimate.mean, estimate.mean)
                axes.plot([100 * end for end in ends], [place + 0.28] * 2, color="black", lw=1.5)
                axes.plot(100 * estimate.mean, place + 0.28, "D", color="black", ms=4.5)
        axes.plot([], [], "D-", color="black", ms=4.5, label="mean, 95 % interval")
        axes.set(title=TITLES[metric], xlabel="per cent")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(places, rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(image, dpi=110)


def draw_lengths(records: Sequence[Record], rows: Sequence[str], image: Path) -> None:
    """Draw LENGTH_PANELS over optimizer steps: a row's mean over the seeds, a dot per run, dots of a seed joined.

    Args:
        records: at most one per row, number of steps and seed.
    """
    lengths = sorted({record.steps for record in records})
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    panels = figure.subplots(1, len(LENGTH_PANELS))
    for axes, (metric, title) in zip(panels, LENGTH_PANELS.items(), strict=True):
        for number, row in enumerate(rows):
            row_records = [record for record in records if record.row == row]
            estimates = [row_estimate([r for r in row_records if r.steps == steps], row, metric) for steps in lengths]
            means = [np.nan if estimate is None else 100 * estimate.mean for estimate in estimates]
            axes.plot(lengths, means, color=f"C{number}", lw=2.2, label=row)
            for seed in {record.seed for record in row_records}:
                seed_records = sorted((r for r in row_records if r.seed == seed), key=lambda record: record.steps)
                values = 100 * known_values(seed_records, metric)
                axes.plot([r.steps for r in seed_records], values, "o-", color=f"C{number}", lw=0.7, ms=4, alpha=0.45)
        axes.set(title=title, xlabel="optimizer steps", xscale="log")
        axes.set_xticks(lengths, [f"{steps:,}" for steps in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("per cent")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(image, dpi=110)
