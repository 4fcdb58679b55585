"""Measure the AP of classes that are detected by example pictures, beside their AP by name.

    python bench/example_prompts.py runs/quickstart
    python bench/example_prompts.py RUN RUN RUN --draws 1       # several seeds of training
    python bench/example_prompts.py RUN --held-out              # a run with train.calibration.names=0.1

For runs on the embedded world. The novel classes of the validation set are detected by 1, 3 and 5 boxes that are cut
out of training images (fewer for a class that has fewer), and by name and 5 boxes; all other classes by name. The novel
classes are the rare ones. With --held-out, they are base classes whose names the training held out, and the weight of 5
boxes beside the name varies. Each draw takes other boxes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from measured import save
from torch import Tensor

from ovd.build.data import hold_out, load_training_index, load_validation_index
from ovd.build.prompts import SHARE_OF_IMAGES, Example, PromptEncoder
from ovd.build.text import evaluation_text, score_ensemble
from ovd.build.trained import TrainedDetector, load_detector
from ovd.build.world import draw_world
from ovd.config.training import TrainConfig
from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.jobs.evaluate import detect_all
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine

NUM_EXAMPLES = 5
SHARES = (0.1, 0.2, 0.3, 0.5)
"""Weights of the examples beside the name, for classes whose names are held out."""


def novel_rows(config: TrainConfig, index: AnnotationIndex, *, held_out: bool) -> list[int]:
    """Return the rows of the classes of a validation set that are detected by examples."""
    if not held_out:
        return [position for position, category in enumerate(index.categories) if category.frequency == "r"]
    training = load_training_index(config, DataReport(stops=False))
    _, held = hold_out(config, training)
    if held is None or not held.names.any():
        raise SystemExit(f"{config.output} held no names out: train it with train.calibration.names=0.1")
    names = {category.name for category, is_held in zip(training.categories, held.names, strict=True) if is_held}
    return [position for position, category in enumerate(index.categories) if category.name in names]


def examples_of(world: Path, index: AnnotationIndex, rows: Sequence[int], seed: int) -> dict[int, list[Example]]:
    """Choose up to five boxes of each of these classes in training images, at random."""
    training = load_annotations(
        world / "annotations" / "lvis_train.json", world / "images", format="lvis", report=DataReport(stops=False)
    )
    names = list(index.names)
    row_of = {row: names.index(category.name) for row, category in enumerate(training.categories)}
    found: dict[int, list[Example]] = {row: [] for row in rows}
    for image in np.random.default_rng(seed).permutation(len(training)).tolist():
        record = training.record(image)
        for box, own in zip(record.labels.boxes.tolist(), record.labels.classes.tolist(), strict=True):
            of_class = found.get(row_of[own])
            if of_class is not None and len(of_class) < NUM_EXAMPLES:
                of_class.append(Example(record.path, tuple(box)))
    return found


def prompt_rows(
    prompts: PromptEncoder, text: Float[Tensor, "C D"], examples: dict[int, list[Example]], *, held_out: bool
) -> Iterator[tuple[str, Float[Tensor, "C D"]]]:
    """Yield the kinds of prompts with examples, each with its row per class."""
    embedded = {row: torch.stack([prompts.encode(example) for example in own]) for row, own in examples.items()}
    for count in () if held_out else (1, 3, NUM_EXAMPLES):
        rows = text.clone()
        for row, own in embedded.items():
            rows[row] = prompts.combine(text[:0], own[:count])
        yield f"by {count} picture{'s' if count > 1 else ''}", rows
    for share in SHARES if held_out else (SHARE_OF_IMAGES,):
        rows = text.clone()
        for row, own in embedded.items():
            rows[row] = prompts.combine(text[row][None], own, share)
        yield f"by name and {NUM_EXAMPLES} pictures, share {share}", rows


def novel_precision(
    trained: TrainedDetector, index: AnnotationIndex, text: Float[Tensor, "C D"], novel: Sequence[int]
) -> dict[str, float]:
    """Return the AP in percent of all classes and of the novel ones."""
    queries = QueryTexts(text, score_ensemble(trained, index.names))
    of_id = {row.category_id: row.AP for row in detect_all(trained, index, queries).evaluate().classes if row.AP > -1}
    ids = [index.categories[row].id for row in novel]
    of_novel = [of_id[identifier] for identifier in ids if identifier in of_id]
    return {"AP": 100 * float(np.mean(list(of_id.values()))), "AP novel": 100 * float(np.mean(of_novel))}


def measure(trained: TrainedDetector, *, draws: int, held_out: bool) -> dict[str, list[dict[str, float]]]:
    """Measure the AP of each draw, by kind of prompt."""
    index = load_validation_index(trained.config, DataReport(stops=False))
    assert index is not None, "the world has a validation set"
    text = evaluation_text(trained.config, trained.clip, index.names, index.synonyms)
    novel = novel_rows(trained.config, index, held_out=held_out)
    print(f"{trained.config.output}: {len(novel)} of {len(index.categories)} classes by examples", flush=True)
    figures = {"by name": [novel_precision(trained, index, text, novel)]}
    print("by name", figures["by name"], flush=True)
    for draw in range(draws):
        examples = examples_of(draw_world(trained.config), index, novel, draw)
        for way, rows in prompt_rows(PromptEncoder(trained), text, examples, held_out=held_out):
            figures.setdefault(way, []).append(novel_precision(trained, index, rows, novel))
            print(way, figures[way][-1], flush=True)
    return figures


def mean_and_spread(values: Sequence[float]) -> str:
    """Format mean and standard deviation over draws and runs."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--draws", type=int, default=3, help="choices of examples (%(default)s)")
    parser.add_argument("--held-out", action="store_true", help="base classes whose names are held out")
    arguments = parser.parse_args()
    of_runs = {
        str(run): measure(load_detector(run), draws=arguments.draws, held_out=arguments.held_out)
        for run in arguments.runs
    }
    report(of_runs, "example_prompts_held_out" if arguments.held_out else "example_prompts")


def report(of_runs: dict[str, dict[str, list[dict[str, float]]]], name: str) -> None:
    """Print the table, and save it with the metrics of all draws."""
    table = {}
    for way in next(iter(of_runs.values())):
        values = [own for figures in of_runs.values() for own in figures[way]]
        table[way] = {metric: mean_and_spread([own[metric] for own in values]) for metric in ("AP", "AP novel")}
        print(f"| {way} | {table[way]['AP']} | {table[way]['AP novel']} |")
    device = torch.device("cpu")
    save(name, {"machine": describe_machine(device), "table": table, "runs": of_runs}, device)


if __name__ == "__main__":
    main()
