"""Run the whole method on the embedded world: draw it, train on its base classes, label image-text pairs with the
result, train further on both, evaluate on its validation set and on two data sets of other styles, and draw pictures.

    python tools/quickstart.py
    python tools/quickstart.py output=runs/mine train.seed=1      # into runs/mine_base/ and runs/mine/

It writes runs/quickstart_base/ (first stage) and runs/quickstart/: metrics.json, eval-coco/, eval-objects365/,
examples.png (the first eight validation images with rare objects, with detections of all classes of the world),
example.jpg and example.detections.jpg (the first of them alone), predictions.jpg, training_images.jpg, curves.png, and
stages.json, the seconds of each stage.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torchvision.ops import box_convert, box_iou

from ovd.build.data import load_evaluation_index, load_validation_index
from ovd.build.detector import resolve_device
from ovd.build.trained import TrainedDetector, load_detector
from ovd.build.world import draw_world
from ovd.cli import add_overrides, parse_with_overrides, run_tool
from ovd.config.labeling import LabelOptions
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.data.images.read import read_image
from ovd.data.index import AnnotationIndex, ImageRecord
from ovd.data.truth import Truth
from ovd.data.world.build import TRANSFER_PARTS
from ovd.engine.log import format_duration
from ovd.evaluation.groups import rare_rows
from ovd.files import write_json
from ovd.format_count import format_count
from ovd.jobs.evaluate import evaluate_run
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.jobs.picture_files import PICTURE
from ovd.jobs.train import train_from_config
from ovd.precision import describe_machine
from ovd.predictor import Predictor
from ovd.selftrain.pseudo_label import shards_of_worker
from ovd.structures import Detections
from ovd.visualize.boxes import LEGEND_WITH_RARE, choose_shown, draw_detections, write_grid

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_LABELED_SHARDS = 1
NUM_EXAMPLES = 8
"""Number of images in examples.png."""


class StageTimes:
    """Wall time of named stages, for the table at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time spent in the `with` block to stage `name`, even if it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured elsewhere, in seconds."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def table(self) -> str:
        """Return a table with a line per stage, in order of first use, and the total, as h:mm:ss."""
        rows = {**self.seconds, "total": sum(self.seconds.values())}
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {format_duration(seconds):>8}" for name, seconds in rows.items())


def rare_records(index: AnnotationIndex) -> list[ImageRecord]:
    """Return the records of images with boxes of rare classes, sorted by image id."""
    rare, records = rare_rows(index.categories), [index.record(row) for row in range(len(index))]
    with_rare = [record for record in records if not rare.isdisjoint(record.labels.classes.tolist())]
    return sorted(with_rare, key=lambda record: record.id)


def count_rare_found(index: AnnotationIndex, record: ImageRecord, found: Detections) -> tuple[int, int]:
    """Count the rare true boxes with a detection of their class at IoU >= 0.5, and all rare true boxes."""
    of_rare = rare_rows(index.categories)
    rare = [row for row, c in enumerate(record.labels.classes.tolist()) if c in of_rare]
    overlap = box_iou(torch.from_numpy(record.labels.boxes[rare]), found.boxes)
    same_class = torch.from_numpy(record.labels.classes[rare])[:, None] == found.classes[None]
    return int(((overlap >= 0.5) & same_class).any(1).sum()), len(rare)


def missed_objects(truth: Truth, image_id: int, shown: Detections) -> Detections:
    """Return the true objects of an image that no detection of their class overlaps with IoU >= 0.5."""
    rows = truth.image_ids == image_id
    boxes = box_convert(torch.from_numpy(truth.boxes_xywh[rows]).float(), "xywh", "xyxy")
    classes = torch.from_numpy(truth.category_rows(truth.category_ids[rows]))
    is_right = (box_iou(boxes, shown.boxes) >= 0.5) & (classes[:, None] == shown.classes)
    missed = ~is_right.any(dim=1)
    return Detections(boxes[missed], torch.zeros(int(missed.sum())), classes[missed])


def draw_examples(trained: TrainedDetector, index: AnnotationIndex, output: Path) -> None:
    """Draw examples.png of the first images with rare objects, and example.detections.jpg of the first of them."""
    names = [category.name.replace("_", " ") for category in index.categories]
    predictor, truth, rare = Predictor(trained), index.exhaustive_truth, rare_rows(index.categories)
    assert truth is not None, "the world knows all of its objects"
    records = rare_records(index)[:NUM_EXAMPLES]
    found = [predictor(read_image(record.path), names) for record in records]

    def draw(row: int, *, in_grid: bool) -> Image.Image:
        record, shown = records[row], choose_shown(found[row], predictor.threshold)
        missed = missed_objects(truth, record.id, shown)
        return draw_detections(read_image(record.path), shown, names, missed=missed, rare=rare, in_grid=in_grid)

    write_grid([draw(row, in_grid=True) for row in range(len(records))], output / "examples.png", LEGEND_WITH_RARE)
    first = records[0]
    shutil.copyfile(first.path, output / "example.jpg")
    draw(0, in_grid=False).save(output / "example.detections.jpg", **PICTURE)
    scored = choose_shown(found[0], predictor.threshold, overlapping=True)
    hits, total = count_rare_found(index, first, scored)
    wanted = sorted({names[c] for c in first.labels.classes if c in rare})
    print(
        f"{output}/example.detections.jpg: validation image {first.id}, {hits} of "
        f"{format_count(total, 'rare object')} found ({', '.join(wanted)}) "
        f"among {len(names)} classes at threshold {predictor.threshold:.2f}; the picture "
        "shows the best class of overlapping boxes, rare classes in yellow, and missed objects in white and parentheses"
    )


def configs_of_stages(overrides: Sequence[str]) -> tuple[TrainConfig, TrainConfig]:
    """Load the configs of both stages; the run folder of the first is beside that of the second."""
    config = load_config(CONFIGS / "quickstart.yaml", overrides, TrainConfig)
    first = config.output.with_name(f"{config.output.name}_base")
    of_first = [f"init_from={first}", f"data.pairs.labels={first / 'labels'}"]
    return (
        load_config(CONFIGS / "quickstart_base.yaml", [*overrides, f"output={first}"], TrainConfig),
        load_config(CONFIGS / "quickstart.yaml", [*overrides, *of_first], TrainConfig),
    )


def save_stages(stages: StageTimes, config: TrainConfig) -> None:
    """Write stages.json: the machine, and the seconds of each stage."""
    device = resolve_device(config)
    content = {"machine": describe_machine(device), "device": device.type, "seconds": stages.seconds}
    write_json(config.output / "stages.json", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_overrides(parser, help="for both stages, for example train.steps=50")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    arguments = parse_with_overrides(parser)
    stages = StageTimes()
    if "OVD_START" in os.environ:  # set by make before the installation
        stages.add("installing", time.time() - int(os.environ["OVD_START"]))
    base, config = configs_of_stages(arguments.overrides)
    with stages.measure("drawing the world"):
        world = draw_world(config)
        index = load_validation_index(config)
        if index is None:
            raise ValueError("the quick start needs a validation set")
    with stages.measure("training on base classes"):
        train_from_config(base, resume=arguments.resume, evaluate=False)
    with stages.measure("labeling pairs"):
        pseudo_label_run(
            load_detector(base.output),
            LabelRequest(world / "pairs", base.output / "labels", LabelOptions(queries="nouns")),
            listed=shards_of_worker(world / "pairs", num_shards=NUM_LABELED_SHARDS),
        )
    with stages.measure("self-training"):
        train_from_config(config, resume=arguments.resume, evaluate=False)
    with stages.measure("evaluating"):
        trained = load_detector(config.output)
        evaluate_run(trained, output=config.output)
        for part in TRANSFER_PARTS:
            transfer = load_evaluation_index(world / "annotations" / f"{part}.json", world / "images" / part, "coco")
            evaluate_run(trained, output=config.output / f"eval-{part}", index=transfer)
    with stages.measure("drawing pictures"):
        draw_examples(trained, index, config.output)
    print(stages.table())
    if not arguments.resume:  # the times of a resumed run are incomplete
        save_stages(stages, config)


if __name__ == "__main__":
    run_tool(main)
