"""Markdown tables of the ablation: rows, steps between them, self-training against its alternatives, lengths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ovd.ablation.records import Record, Selection
from ovd.ablation.statistics import Estimate, paired_difference, records_by_seed, row_estimate
from ovd.files import atomic_write
from ovd.format_count import format_count

TITLES = {"AP": "AP", "APr": "APr", "APc": "APc", "APf": "APf", "coco_AP": "COCO AP", "o365_AP": "O365 AP"}
COMPARED_METRICS = ("APr", "AP", "coco_AP", "o365_AP")
"""Metrics in the tables of differences: novel classes, all classes, and transfer."""
COMPARED_TITLES = {metric: (TITLES[metric], 100) for metric in COMPARED_METRICS}
"""Titles of the compared metrics, and the factors that they are multiplied by."""
STEPS = (
    ("text_augmentation", "scratch"),
    ("gated", "text_augmentation"),
    ("self_training", "gated"),
    ("today", "gated"),
    ("gated", "scratch"),
    ("gated_no_text", "scratch"),
    ("gated", "gated_no_text"),
)
"""Pairs of compared rows: the method's three ways, each added to the previous one; then shortcuts without text
augmentation."""
ALIGNMENT = (
    ("aligned_backbone", "today"),
    ("region_distillation", "today"),
    ("pair_negatives", "today"),
    ("calibration", "today"),
    ("competition", "today"),
    ("second_look_alone", "today"),
    ("today_longer", "today"),
    ("one_pass", "today"),
    ("one_pass", "today_longer"),
    ("second_look", "today"),
    ("second_look", "one_pass"),
)
"""Pairs of compared rows in the table on alignment: each part alone, training length, all parts together."""
BASELINES = ("oracle", "frozen_backbone", "image_labels", "ngrams", "caption_top1")
"""Rows that self-training is compared with."""
LENGTH_TITLES = {
    **{metric: TITLES[metric] for metric in ("APr", "APc", "APf", "coco_AP", "o365_AP")},
    "naming_rare": "rare named right",
    "naming_base": "base named right",
}
"""Titles of the metrics in the tables over training lengths. Naming is the share of true boxes, of rare and of base
classes, whose own class has the highest score."""


DECISION_TITLES = {
    "rare_named": ("rare named right", 100),
    "base_named": ("base named right", 100),
    "cgF1": ("cgF1", 1),
    "cgF1_rare": ("cgF1 rare", 1),
    "IL_MCC": ("IL_MCC", 1),
    "absent_per_image": ("absent names an image", 1),
    "ece_rare": ("ECE rare", 1),
    "brier_rare": ("Brier rare", 1),
    "exhaustive_APr": ("exhaustive APr", 100),
}
"""Titles of the naming and decision metrics, and the factors that they are multiplied by; early records lack them."""


def format_report(selection: Selection, rows: Sequence[str]) -> str:
    """Format all tables, with the machine and the records that were left out.

    Args:
        rows: names of the rows in the table's order; a row without a record keeps its line.
    """
    records = selection.records
    parts = [
        _runs(records),
        "LVIS ordinary box AP, COCO AP and Objects365 AP in percent, mean ± standard deviation over the seeds; "
        "hours of one run, mean:",
        _row_table(records, rows),
    ]
    steps = [pair for pair in STEPS if set(pair) <= set(rows)]
    baselines = [("self_training", row) for row in BASELINES if {"self_training", row} <= set(rows)]
    if any(record.cgF1 is not None for record in records):
        parts += [
            "Names, decisions and probabilities, mean (95 % interval, t):",
            _decision_table(records, rows),
        ]
    for title, pairs in (
        ("Steps", steps),
        ("Self-training against the other rows", baselines),
        ("Alignment", [pair for pair in ALIGNMENT if set(pair) <= set(rows)]),
    ):
        if pairs:
            parts += [
                f"{title}: mean difference over the seeds that both rows have (95 % interval, paired, t):",
                _difference_table(records, pairs, COMPARED_TITLES),
            ]
            if any(record.cgF1 is not None for record in records):
                parts += [
                    f"{title}, names and decisions:",
                    _difference_table(records, pairs, DECISION_TITLES),
                ]
    parts += [f"Runs {note}." for note in selection.other_machines] + [f"Left out: {note}." for note in selection.notes]
    return "\n\n".join(parts) + "\n"


def format_lengths(selection: Selection, rows: Sequence[str]) -> str:
    """Format tables of every row at every number of optimizer steps, and of each row's difference to the first row."""
    records = selection.records
    by_length = {
        steps: [record for record in records if record.steps == steps]
        for steps in sorted({record.steps for record in records})
    }
    head = ["row", "steps", "seeds", *LENGTH_TITLES.values()]
    means = [
        [row, f"{steps:,}", str(len(records_by_seed(length_records, row)))]
        + [_mean_cell(row_estimate(length_records, row, metric)) for metric in LENGTH_TITLES]
        for row in rows
        for steps, length_records in by_length.items()
    ]
    first = rows[0]
    differences = [
        [f"{row} - {first}", f"{steps:,}"]
        + [_difference_cell(paired_difference(length_records, row, first, metric)) for metric in LENGTH_TITLES]
        for row in rows[1:]
        for steps, length_records in by_length.items()
    ]
    parts = [
        _runs(records),
        "In percent, mean ± standard deviation over the seeds:",
        markdown_table([head, *means]),
    ]
    if differences:
        parts += [
            "Mean difference over the seeds that both rows have (95 % interval, paired, t):",
            markdown_table([["difference", "steps", *LENGTH_TITLES.values()], *differences]),
        ]
    parts += [f"Runs {note}." for note in selection.other_machines] + [f"Left out: {note}." for note in selection.notes]
    return "\n\n".join(parts) + "\n"


def _runs(records: Sequence[Record]) -> str:
    seeds = ", ".join(map(str, sorted({record.seed for record in records})))
    return (
        f"{format_count(len(records), 'run')}, seeds {seeds}, on {records[0].machine}."
        if records
        else "No finished run yet."
    )


def _row_table(records: Sequence[Record], rows: Sequence[str]) -> str:
    lines = [["row", "seeds", *TITLES.values(), "hours"]]
    for row in rows:
        row_records = records_by_seed(records, row).values()
        metrics = [_mean_cell(row_estimate(records, row, metric)) for metric in TITLES]
        hours = f"{np.mean([record.hours for record in row_records]):.2f}" if row_records else "-"
        lines.append([row, str(len(row_records)), *metrics, hours])
    return markdown_table(lines)


def _decision_table(records: Sequence[Record], rows: Sequence[str]) -> str:
    lines = [["row", "seeds", *(title for title, _ in DECISION_TITLES.values())]]
    for row in rows:
        cells = [
            _interval_cell(row_estimate(records, row, metric), factor)
            for metric, (_, factor) in DECISION_TITLES.items()
        ]
        lines.append([row, str(len(records_by_seed(records, row))), *cells])
    return markdown_table(lines)


def _interval_cell(estimate: Estimate | None, factor: float) -> str:
    if estimate is None:
        return "-"
    digits = 1 if abs(factor * estimate.mean) >= 10 else 3
    mean = f"{factor * estimate.mean:.{digits}f}"
    if estimate.interval is None:
        return mean
    return f"{mean} ({' to '.join(f'{factor * end:.{digits}f}' for end in estimate.interval)})"


def _difference_table(
    records: Sequence[Record], pairs: Sequence[tuple[str, str]], columns: Mapping[str, tuple[str, int]]
) -> str:
    lines = [["difference", "seeds", *(title for title, _ in columns.values())]]
    for row, other in pairs:
        num_seeds = len(records_by_seed(records, row).keys() & records_by_seed(records, other).keys())
        differences = [
            _difference_cell(paired_difference(records, row, other, metric), factor)
            for metric, (_, factor) in columns.items()
        ]
        lines.append([f"{row} - {other}", str(num_seeds), *differences])
    return markdown_table(lines)


def _mean_cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    deviation = "" if estimate.deviation is None else f" ± {100 * estimate.deviation:.2f}"
    return f"{100 * estimate.mean:.2f}{deviation}"


def _difference_cell(estimate: Estimate | None, factor: float = 100) -> str:
    if estimate is None:
        return "-"
    digits = 2 if factor == 100 else 3
    interval = "-"
    if estimate.interval is not None:
        interval = " to ".join(f"{factor * end:.{digits}f}" for end in estimate.interval)
    return f"{factor * estimate.mean:+.{digits}f} ({interval})"


def markdown_table(lines: list[list[str]]) -> str:
    """Format a Markdown table; the first line is the header."""
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def write_between_markers(path: Path, name: str, text: str) -> None:
    """Replace the text between the marker lines `<!-- name:begin -->` and `<!-- name:end -->` of a Markdown file.

    Raises:
        ValueError: the file does not have exactly one of each marker, in order.
    """
    begins, ends = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    with path.open(encoding="utf-8", newline="") as file:  # keeps the line ends
        content = file.read()
    before, begin, rest = content.partition(begins)
    _, end, after = rest.partition(ends)
    if not begin or not end or content.count(begins) + content.count(ends) != 2:
        raise ValueError(
            f"{path}: needs one line {begins} and, below it, one line {ends}; the tables are written between them"
        )
    with atomic_write(path) as file:
        file.write(f"{before}{begins}\n{text}{ends}{after}")
