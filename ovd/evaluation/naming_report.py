"""Report of the naming of true boxes per group of classes: table, naming.json and naming.png."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ovd.evaluation.groups import Group
from ovd.evaluation.naming_results import NAMING_METHODS, BoxNaming, NamingReport, NamingShares, PointNaming
from ovd.files import write_json
from ovd.format_count import format_count
from ovd.visualize.figure import write_figure
from ovd.visualize.palette import PALETTE

_HEADS = ("point", "mean", "crop", "detector")


def format_naming(report: NamingReport, average_precision: Mapping[Group, float]) -> str:
    """Format a table for a console with a row per group of classes and a column per way to name a box.

    Args:
        average_precision: AP of the detector per group, from `group_average_precision`.
    """
    columns = "".join(f"  {head:>8}" for head in _HEADS)
    classes = format_count(report.num_classes, "class", "classes")
    lines = [
        f"Naming of true boxes among {classes} (percent correct), by CLIP and by the detector",
        f"{'classes':<15}  {'boxes':>7}{columns}  change  cosine  backbone      AP",
    ]
    for item in report.groups:
        scores, cosines = item.boxes.shares, item.boxes.cosines
        change = scores.naming_after - scores.naming_before
        precision = f"{100 * average_precision[item.group]:6.2f}" if item.group in average_precision else f"{'-':>6}"
        lines.append(
            f"{item.group:<15}  {item.boxes.count:>7}{_cells(scores)}  {100 * change:+6.2f}  "
            f"{cosines.cosine:6.3f}  {cosines.backbone_cosine:8.3f}  {precision}"
        )
    lines += _rare_lines(report)
    lines.append("")
    lines += [
        f"- at {format_count(item.points.count, 'point')} inside boxes ({item.group}): "
        f"{100 * item.points.before:.2f} by CLIP, {100 * item.points.after:.2f} by the detector"
        for item in report.groups
        if item.group in ("all", "rare")
    ]
    lines += [
        "- point: CLIP's dense feature at the box's point; mean: its mean over the box; crop: CLIP on the box's crop, "
        f"{report.crop_side_px} px",
        "- change: from `point` to `detector`, which use the same point, before and after training",
        "- cosine: detector's class embedding and CLIP's dense feature; backbone: dense features of both",
        f"- {format_count(report.num_images, 'image')}; boxes left out, since no point is matched to them: "
        f"{report.num_boxes_without_point}",
    ]
    return "\n".join(lines) + "\n"


def _rare_lines(report: NamingReport) -> list[str]:
    """Format the rows that compare naming rare boxes among the rare names with naming them among all names."""
    if report.rare_among_rare is None or report.base_bias is None:
        return []
    (count,) = (item.boxes.count for item in report.groups if item.group == "rare")

    def row(title: str, shares: NamingShares) -> str:
        return f"{title:<15}  {count:>7}{_cells(shares)}"

    return [row("rare among rare", report.rare_among_rare), row("base bias", report.base_bias)]


def _cells(shares: NamingShares) -> str:
    return "".join(f"  {100 * getattr(shares, way):8.2f}" for way in NAMING_METHODS)


def write_naming(report: NamingReport, folder: Path) -> None:
    """Write naming.json and naming.png, replacing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [
        {"group": item.group, "boxes": _box_values(item.boxes), "points": _point_values(item.points)}
        for item in report.groups
    ]
    write_json(folder / "naming.json", asdict(report) | {"groups": groups})
    write_figure(draw_naming(report), folder / "naming.png")


def _box_values(boxes: BoxNaming) -> dict[str, float]:
    """Return the figures of boxes in the flat form of naming.json."""
    shares = boxes.shares
    return {
        "count": boxes.count,
        "naming_before": shares.naming_before,
        "naming_after": shares.naming_after,
        **asdict(boxes.cosines),
        "naming_mean": shares.naming_mean,
        "naming_crop": shares.naming_crop,
    }


def _point_values(points: PointNaming) -> dict[str, float]:
    """Return the figures of points in the flat form of naming.json."""
    return {
        "count": points.count,
        "naming_before": points.before,
        "naming_after": points.after,
        **asdict(points.cosines),
    }


def draw_naming(report: NamingReport) -> Figure:
    """Draw bars of the share of true boxes named right, for each group of classes and each way to name a box."""
    rows = [
        (f"{item.group}\n{format_count(item.boxes.count, 'box', 'boxes')}", item.boxes.shares) for item in report.groups
    ]
    if report.rare_among_rare is not None:
        rows.append(("rare, among\nrare names", report.rare_among_rare))
    figure = Figure(figsize=(max(6.0, 1.7 * len(rows)), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.2
    positions = np.arange(len(rows))
    styles = (
        ("CLIP at a point", "0.75"),
        ("CLIP, mean over the box", "0.5"),
        ("CLIP on the crop (reference)", "0.25"),
        ("detector", PALETTE[0]),
    )
    for number, (way, (label, color)) in enumerate(zip(NAMING_METHODS, styles, strict=True)):
        shares = [100 * getattr(values, way) for _, values in rows]
        bars = axes.bar(positions + (number - 1.5) * width, shares, width, label=label, color=color)
        axes.bar_label(bars, fmt="%.0f", fontsize="small")
    axes.set_xticks(positions, [title for title, _ in rows])
    axes.set(ylim=(0, 108), ylabel="true boxes with the correct name (%)")
    axes.set_title(
        f"Naming of true boxes among {format_count(report.num_classes, 'class', 'classes')}", fontsize="medium"
    )
    figure.legend(loc="outside lower center", ncols=4 if len(rows) > 4 else 2)  # four do not fit into a narrow one
    return figure
