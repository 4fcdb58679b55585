"""Measure how time and memory of training, detection, labeling and reading grow, and fit a line to each.

    python bench/cost.py                     # CLIP's ResNet-50, 2 images of 320 px, all but one quantity fixed
    python bench/cost.py --device cuda       # 16 images of 800 px
    python bench/cost.py --only-page         # docs/cost.md and its picture from earlier results

Training scores all classes (`train.negatives=all`). Labeling is end to end, by number of captioned images; reading is
of an annotation file in LVIS's format, by number of images. On a CPU every point has a process of its own. Points are
measured in rounds, in which they take turns. Memory is what the work adds at its peak.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from annotations import write_annotations
from cost_page import write_page
from inputs import build_bench_detector, build_bench_teacher, parse_with_sizes, write_scenes
from measured import measure_added_bytes, run_in_subprocess, save
from tqdm import tqdm
from train_step import make_step

from ovd.config.labeling import LabelOptions
from ovd.data.annotations import load_annotations
from ovd.data.report import DataReport
from ovd.inference import ImageBatch
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine
from ovd.selftrain.pseudo_label import label_shards

ROUNDS = 1
TIMED = 3
"""Number of timed calls in a round, after one that is not counted."""
OPTIONS = DetectionOptions(score_threshold=0.0, max_detections=300, candidates=2000)
NUM_CLASSES = 80
"""Number of classes where another quantity varies."""


@dataclass(frozen=True)
class Setting:
    """The size of the work of one point."""

    classes: int = NUM_CLASSES
    side: int = 320
    batch: int = 2
    data: int = 0
    """Number of captioned images, or of images in an annotation file."""


@dataclass(frozen=True)
class Series:
    """Work that is measured at several sizes."""

    job: str
    by: str
    """Name of the quantity that varies, with its unit."""
    points: tuple[tuple[float, Setting], ...]
    """Value of that quantity and the setting, for each point."""


def all_series(side: int, batch: int) -> list[Series]:
    """Return the series to measure around a size of images and batches."""
    sides = [round(side * factor / 32) * 32 for factor in (0.6, 0.8, 1.0, 1.2, 1.4)]
    classes = {"training": (80, 1203, 4585, 13_000), "detection": (80, 1203, 4585, 13_000, 20_000)}
    series = []
    for job, counts in classes.items():
        series += [
            Series(job, "1,000 classes", tuple((n / 1000, Setting(n, side, batch)) for n in counts)),
            Series(job, "megapixel of an image", tuple((s * s / 1e6, Setting(side=s, batch=batch)) for s in sides)),
            Series(job, "image of a batch", tuple((n, Setting(side=side, batch=n)) for n in (1, 2, 4, 8))),
        ]
    pairs = tuple((n / 1000, Setting(data=n)) for n in (64, 128, 256, 512))
    images = tuple((n / 1000, Setting(data=n)) for n in (2000, 5000, 10_000, 20_000))
    return [*series, Series("labeling", "1,000 images", pairs), Series("reading", "1,000 images", images)]


def training(setting: Setting, config: Path, device: torch.device, _: Path) -> Callable[[], object]:
    return make_step("ours", setting.classes, config, setting.batch, setting.side, device)


def detection(setting: Setting, config: Path, device: torch.device, _: Path) -> Callable[[], object]:
    bench = build_bench_detector(config, device)
    batch, text = bench.batch(setting.batch, setting.side, 1), bench.text(setting.classes)
    inference = bench.inference(size=setting.side, options=OPTIONS)
    queries, images = QueryTexts(text), ImageBatch(batch.images, batch.sizes, batch.sizes)
    return lambda: inference.detect(queries, images)


def labeling(setting: Setting, _: Path, device: torch.device, folder: Path) -> Callable[[], object]:
    shards = folder / f"pairs-{setting.data}"
    if not shards.exists():
        write_scenes(shards, setting.data)
    options = LabelOptions(queries="caption")
    bench = build_bench_teacher(device, shards, options)

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            label_shards(shards, Path(output) / "labels", bench.teacher, bench.texts, options)

    return work


def reading(setting: Setting, _: Path, __: torch.device, folder: Path) -> Callable[[], object]:
    path = folder / f"annotations-{setting.data}.json"
    if not path.exists():
        write_annotations(path, setting.data, boxes_per_image=12, mask_numbers=40)
    return lambda: load_annotations(path, folder, format="lvis", report=DataReport())


JOBS = {"training": training, "detection": detection, "labeling": labeling, "reading": reading}


def measure(job: str, *settings) -> tuple[list[float], int]:
    """Measure the seconds of one point's work, and the memory in bytes that it adds to this process."""
    device, seconds = settings[2], []

    def work() -> None:
        run = JOBS[job](*settings)
        for number in range(TIMED + 1):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                seconds.append(time.perf_counter() - start)

    return seconds, measure_added_bytes(work, device)


def main() -> None:
    if (arguments := parse()).only_page:
        write_page()
        return
    device, series = arguments.device, all_series(arguments.size, arguments.batch_size)
    seconds: dict[tuple[int, int], list[float]] = {}
    memory: dict[tuple[int, int], int] = {}
    points = [(row, column) for row, one in enumerate(series) for column in range(len(one.points))]
    with tempfile.TemporaryDirectory() as folder, tqdm(total=ROUNDS * len(points), unit="point") as progress:
        for _ in range(ROUNDS):
            for row, column in points:
                _, setting = series[row].points[column]
                took, peak = run_in_subprocess(
                    measure, series[row].job, setting, arguments.config, device, Path(folder), device=device
                )
                seconds[row, column] = seconds.get((row, column), []) + took
                memory[row, column] = max(peak, memory.get((row, column), 0))
                progress.update()
    rows = [
        {
            "job": one.job,
            "by": one.by,
            "x": [x for x, _ in one.points],
            "milliseconds": [[round(1000 * s, 2) for s in seconds[row, c]] for c in range(len(one.points))],
            "MiB": [round(memory[row, c] / 2**20, 1) for c in range(len(one.points))],
        }
        for row, one in enumerate(series)
    ]
    settings = {name: str(getattr(arguments, name)) for name in ("config", "size", "batch_size")}
    save("cost", {"machine": describe_machine(device), "settings": settings, "rows": rows}, device)
    write_page()


def parse() -> argparse.Namespace:
    """Parse the options of the LVIS recipe, and whether to measure at all."""
    return parse_with_sizes(__doc__, switches={"--only-page": "measure nothing; write the page from earlier figures"})


if __name__ == "__main__":
    main()
