"""AP of classes that are asked for by example pictures, beside their AP by name.

    python bench/example_prompts.py --seeds 11 12 13
    python bench/example_prompts.py --seeds 11 --held-out

Trains both stages of the quick start for each seed of the embedded world, in runs/example_prompts; what is done is not
repeated. Then the novel classes of the validation images are asked for by 1, 3 and 5 boxes that are cut out of training
images, and by name and 5 boxes at several weights; all others by name. The novel classes are the rare ones; with
--held-out, base classes whose names the training held out, on which `SHARE_OF_IMAGES` is chosen.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from measured import save
from torch import Tensor

from ovd.ablation.row import RowStages, TrainedRow, read_row, train_row
from ovd.build.data import hold_out, load_training_index, load_validation_index
from ovd.build.detector import TrainedDetector, load_detector
from ovd.build.prompts import Example, PromptEncoder
from ovd.build.text import text_of_index
from ovd.config import AblationRow, LabelsConfig
from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.jobs.evaluate import detect_all
from ovd.precision import describe_machine

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = Path("runs/example_prompts")
NUM_EXAMPLES = 5
SHARES = (0.1, 0.2, 0.3, 0.5)
"""Weights of the examples beside names."""


def stages(*, held_out: bool) -> RowStages:
    """The quick start's two stages; `held_out`: without a tenth of the base classes' names."""
    row = AblationRow(
        config=Path("quickstart.yaml"),
        teacher=Path("quickstart_base.yaml"),
        labels=LabelsConfig(queries="nouns", shards=1),
    )
    return read_row(row, CONFIGS, ["train.calibration={names: 0.1}"] if held_out else [])


def novel_rows(row: TrainedRow, index: AnnotationIndex, *, held_out: bool) -> list[int]:
    """The classes of a validation set that are asked for by examples."""
    if not held_out:
        return [position for position, category in enumerate(index.categories) if category.frequency == "r"]
    training = load_training_index(row.config, DataReport(stops=False))
    _, held = hold_out(row.config, training)
    assert held is not None, "the config has train.calibration"
    names = {category.name for category, is_held in zip(training.categories, held.names, strict=True) if is_held}
    return [position for position, category in enumerate(index.categories) if category.name in names]


def examples_of(world: Path, index: AnnotationIndex, rows: Sequence[int], seed: int) -> dict[int, list[Example]]:
    """Boxes of these classes in training images, chosen by chance."""
    training = load_annotations(
        world / "annotations" / "lvis_train.json", world / "images", format="lvis", report=DataReport(stops=False)
    )
    names = [category.name for category in index.categories]
    row_of = {row: names.index(category.name) for row, category in enumerate(training.categories)}
    found: dict[int, list[Example]] = {row: [] for row in rows}
    for image in np.random.default_rng(seed).permutation(len(training)).tolist():
        record = training.record(image)
        for box, own in zip(record.labels.boxes.tolist(), record.labels.classes.tolist(), strict=True):
            of_class = found.get(row_of[own])
            if of_class is not None and len(of_class) < NUM_EXAMPLES:
                of_class.append(Example(record.path, tuple(box)))
    assert all(len(examples) == NUM_EXAMPLES for examples in found.values()), "every class has boxes enough"
    return found


def asked(
    prompts: PromptEncoder, text: Float[Tensor, "C D"], examples: dict[int, list[Example]]
) -> Iterator[tuple[str, Float[Tensor, "C D"]]]:
    """The ways of asking, each with a row per class."""
    embedded = {row: torch.stack([prompts.encode(example) for example in own]) for row, own in examples.items()}
    yield "by name", text
    for count in (1, 3, 5):
        rows = text.clone()
        for row, own in embedded.items():
            rows[row] = prompts.combine(text[:0], own[:count])
        yield f"by {count} picture{'s' if count > 1 else ''}", rows
    for share in SHARES:
        rows = text.clone()
        for row, own in embedded.items():
            rows[row] = prompts.combine(text[row][None], own, share)
        yield f"by name and {NUM_EXAMPLES} pictures, share {share}", rows


def measure(trained: TrainedDetector, index: AnnotationIndex, examples: dict[int, list[Example]]) -> dict[str, dict]:
    """AP in percent of all classes and of those with examples, by the way of asking."""
    figures = {}
    text = text_of_index(trained.config, trained.clip, index)
    ids = [category.id for category in index.categories]
    for way, rows in asked(PromptEncoder(trained), text, examples):
        classes = detect_all(trained, index, rows).evaluate().classes
        of_id = {row.category_id: row.AP for row in classes if row.AP > -1}
        novel = [of_id[ids[row]] for row in examples if ids[row] in of_id]
        figures[way] = {
            "AP": round(100 * float(np.mean(list(of_id.values()))), 1),
            "AP novel": round(100 * float(np.mean(novel)), 1),
        }
        print(f"{way:42} {figures[way]}", flush=True)
    return figures


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="default: %(default)s")
    parser.add_argument("--held-out", action="store_true", help="base classes whose names are held out")
    arguments = parser.parse_args()
    name = "example_prompts_held_out" if arguments.held_out else "example_prompts"
    of_seeds = {}
    for seed in arguments.seeds:
        row = train_row(stages(held_out=arguments.held_out), seed, RUNS)
        trained = load_detector(row.config.output)
        index = load_validation_index(row.config, DataReport(stops=False))
        assert index is not None, "the world has a validation set"
        novel = novel_rows(row, index, held_out=arguments.held_out)
        print(f"seed {seed}: {len(novel)} of {len(index.categories)} classes by examples", flush=True)
        of_seeds[str(seed)] = measure(trained, index, examples_of(row.world, index, novel, seed))
    table = {
        way: {metric: mean_and_spread([own[way][metric] for own in of_seeds.values()]) for metric in ("AP", "AP novel")}
        for way in next(iter(of_seeds.values()))
    }
    save(name, {"machine": describe_machine(torch.device("cpu")), "table": table, "seeds": of_seeds})
    for way, figures in table.items():
        print(f"| {way} | {figures['AP']} | {figures['AP novel']} |")


if __name__ == "__main__":
    main()
