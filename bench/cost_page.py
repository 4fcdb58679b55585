"""Write docs/cost.md, its picture and docs/cost.json: the points of cost.py, a line through those of each series, and
predictions for larger work."""

import json
import statistics
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from measured import results_file

from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.cost import MEASURED_UTILIZATION, count_cost
from ovd.visualize.palette import PALETTE

ROOT = Path(__file__).parents[1]
POINTS, PAGE, PICTURE = (ROOT / "docs" / f"cost.{kind}" for kind in ("json", "md", "png"))
DEVICES = ("cpu", "cuda")
CONFIG = ROOT / "configs" / "lvis_base_rn50.yaml"
PEAK_TFLOPS = 989.0
"""Peak of an H100 in TFLOP/s, dense bf16."""
MACHINES = 0.08
"""Relative difference seen in the time of the same step between machines of one kind."""
BEYOND_LINE = 0.1
"""Relative error of a prediction from pixels, about as large as the largest deviation from the lines."""
LABELING_OVER_DETECTION = (0.87, 1.2)
"""Time of labeling over that of detection, from bench/pseudo_label.py on two kinds of CPU: decoding, captions and
writing add to the detector's work, larger batches reduce it."""
CAPTIONED_IMAGES, GPUS = 1e9, 64
TITLES = {
    "training": "training, one step",
    "detection": "detection, one batch",
    "labeling": "labeling image-text pairs",
    "reading": "reading an annotation file",
}
AXES = {
    "1,000 classes": "classes, in thousands",
    "megapixel of an image": "size of an image, in megapixels",
    "image of a batch": "images in a batch",
    "1,000 images": "images, in thousands",
}
"""Axis labels of the picture for the quantities of cost.py; `TITLES` has the titles for its jobs."""


@dataclass(frozen=True)
class Line:
    """Least-squares line through all values."""

    start: float
    slope: float
    error: float
    """Two standard errors of the slope."""
    deviation: float
    """Largest deviation of a point's median from the line, as a share of the median."""

    @classmethod
    def through(cls, x: list[float], values: list[list[float]]) -> "Line":
        """Fit the line.

        Args:
            values: all measured values at each x.
        """
        every_x = np.repeat(x, [len(of_one) for of_one in values])
        (slope, start), covariance = np.polyfit(every_x, np.concatenate(values), 1, cov=True)
        medians = np.array([statistics.median(of_one) for of_one in values])
        deviation = np.abs(start + slope * np.array(x) - medians) / medians
        return cls(float(start), float(slope), float(2 * covariance[0, 0] ** 0.5), float(deviation.max()))

    def __str__(self) -> str:
        return f"{self.start:,.0f} + {_rounded(self.slope)} ± {_rounded(self.error)}"


def _rounded(number: float) -> str:
    """Format a number with three digits, or as an integer from 100 on."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def measured_points() -> dict[str, dict[str, Any]]:
    """Read the results of cost.py by device, from bench/results/ or else from docs/cost.json."""
    found = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    for device in DEVICES:
        if results_file("cost", device).exists():
            found[device] = json.loads(results_file("cost", device).read_text())
    return {device: found[device] for device in DEVICES if device in found}


def write_page() -> None:
    """Write the points, the page and the picture from the results of cost.py and docs/benchmarks.json."""
    found = measured_points()
    if not found:
        raise SystemExit("nothing was measured yet: python bench/cost.py")
    POINTS.write_text(json.dumps(found, indent=2) + "\n")
    parts = [_INTRODUCTION, *(_table(result) for result in found.values()), _predictions()]
    PAGE.write_text("\n".join(parts))
    _draw(list(found.values()))
    print(*(path.relative_to(ROOT) for path in (POINTS, PAGE, PICTURE)), sep=", ")


_INTRODUCTION = """# What it costs

`python bench/cost.py` writes this page. It measures how time and memory grow with one quantity at a time, and fits a
line to the points: the start, plus the slope per unit (± two standard errors). The deviation is the largest relative
distance of a point from its line. If it is large, growth is not linear, and the line says little between points.

- *Training* is one whole step that scores all classes. *Detection* is one batch, from images to boxes.
- *Labeling* is a whole run over captioned images of 192 px with the quick start's detector.
- *Reading* loads an annotation file in LVIS format with 12 boxes and masks per image from the cache (OVD_CACHE), as
  every read after the first does.
- Memory is the peak that the work adds to a process.
- All points are in [cost.json](cost.json).

![time over what grows](cost.png)
"""


def _table(result: dict[str, Any]) -> str:
    settings = result["settings"]
    lines = [
        f"## {result['machine']}",
        _paragraph(
            f"{result['date']}, `{settings['config']}` with random weights. Unless the job or the quantity that varies "
            f"says otherwise, a batch has {settings['batch_size']} images of {settings['size']} px, and there are 80 "
            "classes."
        ),
        "",
        "| job | per | time, ms | deviation | memory, MiB | deviation |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        time = Line.through(row["x"], row["milliseconds"])
        memory = Line.through(row["x"], [[value] for value in row["MiB"]])
        lines.append(
            f"| {row['job']} | {row['by']} | {time} | {time.deviation:.0%} | {memory} | {memory.deviation:.0%} |"
        )
    return "\n".join([*lines, ""])


def _gpu_milliseconds(name: str, classes: int) -> float:
    """Return our median time in milliseconds for 16 images of 800 px, from docs/benchmarks.json."""
    rows = json.loads((ROOT / "docs" / "benchmarks.json").read_text())["rows"]
    row = next(row for row in rows if row["name"] == name and row["device"] == "cuda")
    times = next(one["milliseconds"]["ours"] for one in row["raw"]["rows"] if one["classes"] == classes)
    return statistics.median(times)


def _predictions() -> str:
    config = load_config(CONFIG, [], TrainConfig)
    size = config.data.size
    of_square, of_image = (count_cost(config, *sides).training_flops for sides in ((800, 800), (size, size)))
    num_images = config.train.steps * config.train.batch_size
    step = num_images * of_image / of_square * _gpu_milliseconds("train_step", 1203) / 16 / 3.6e6
    loop = num_images * of_image / (MEASURED_UTILIZATION * PEAK_TFLOPS * 1e12) / 3600
    spread = (MACHINES**2 + BEYOND_LINE**2) ** 0.5
    detection = _gpu_milliseconds("detect", 91) / 16 * CAPTIONED_IMAGES / 3.6e6
    low, high = ((1 + sign * MACHINES) * detection * LABELING_OVER_DETECTION[sign > 0] for sign in (-1, 1))
    work = f"LVIS base classes, `{CONFIG.stem}`: {config.train.steps:,} steps of {config.train.batch_size} images"
    rows = [
        (f"{work}, {size} px, one H100, steps alone", step, step * (1 - spread), step * (1 + spread)),
        ("the same, through the loader of 16 cores", loop, loop * (1 - spread), loop * (1 + spread)),
        ("pseudo-labels of a billion captioned images at 800 px, one H100", detection, low, high),
        (f"the same, {GPUS} H100s", detection / GPUS, low / GPUS, high / GPUS),
    ]
    before = f"""These figures are predictions from measurements on one H100 ([benchmarks](benchmarks.md), 16 images of
        800 px); none of this work has been run. `ovd cost` counts operations, and divides them by
        {MEASURED_UTILIZATION:.0%} of the peak, which CLIP's ResNet-50 reached with training loop and loader. The memory
        that it predicts is a lower bound (8.3 GiB where 10 were measured)."""
    after = f"""The bounds combine two errors that were measured: {MACHINES:.0%} between machines of one kind, and
        {BEYOND_LINE:.0%} from 800 px to other sizes (training's deviations above). Labeling has not been timed on a
        GPU: its bounds are {LABELING_OVER_DETECTION[0]:g} and {LABELING_OVER_DETECTION[1]:g} times detection, as on
        two kinds of CPU. Shards are labeled independently, so more GPUs divide the time."""
    table = [f"| {name} | {_rounded(hours)} | {_rounded(low)}, {_rounded(high)} |" for name, hours, low, high in rows]
    head = "| work | hours | from, to |\n|---|---|---|"
    return "\n\n".join(
        ["## Larger work, predicted", _paragraph(before), "\n".join([head, *table]), _paragraph(after) + "\n"]
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118)


def _draw(results: list[dict[str, Any]]) -> None:
    """Draw measured times and fitted lines over the quantity that varies, one part of the picture per machine."""
    parts = Figure(figsize=(12, 5.2 * len(results)), layout="constrained")
    for result, part in zip(results, parts.subfigures(len(results), squeeze=False)[:, 0], strict=True):
        part.suptitle(result["machine"])
        panels = part.subplots(2, 4).flat
        for row, panel in zip(result["rows"], panels, strict=True):
            line = Line.through(row["x"], row["milliseconds"])
            for x, values in zip(row["x"], row["milliseconds"], strict=True):
                panel.plot([x] * len(values), np.array(values) / 1000, "o", color=PALETTE[0], markersize=3, alpha=0.6)
            ends = np.array([0, max(row["x"])])
            panel.plot(ends, (line.start + line.slope * ends) / 1000, color=PALETTE[1])
            panel.set(xlabel=AXES[row["by"]], ylabel="seconds")
            panel.set_title(TITLES[row["job"]], fontsize="medium")
            panel.set_ylim(bottom=0)
    marks = [
        Line2D([], [], color=PALETTE[0], marker="o", linestyle="", label="measured"),
        Line2D([], [], color=PALETTE[1], label="line through all points"),
    ]
    parts.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False)
    parts.savefig(PICTURE, dpi=110)
