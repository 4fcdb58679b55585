"""Label image-text pairs for self-training: a trained detector detects boxes, with queries from the captions.

    ovd label-pairs runs/quickstart --pairs data/cc12m --output data/cc12m_labels
    ovd label-pairs runs/quickstart --pairs FOLDER --output OTHER --queries classes --classes-file names.txt
    torchrun --nproc-per-node 8 -m ovd label-pairs runs/quickstart --pairs FOLDER --output OTHER
    ovd label-pairs runs/quickstart --pairs FOLDER --output OTHER --ray auto

FOLDER holds tar shards of .jpg and .txt files (img2dataset, WebDataset). For each shard, OUTPUT gets NAME.safetensors
with the boxes and the text embeddings, and then NAME.json, a ledger with the settings, hashes and counts. The same
command continues an interrupted run; several workers may share an output. With --ray, all GPUs of a Ray cluster label,
and if a worker dies, another labels its shard (pip install 'ovd[ray]').
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ovd.choices import QuerySource, Templates
from ovd.commands.arguments import (
    add_expert_options,
    closed_fraction,
    expert_group,
    nonnegative_int,
    positive_int,
)
from ovd.config.labeling import LabelOptions
from ovd.config_files import parse_config
from ovd.files import refuse_missing_run

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ovd.jobs.label_pairs import LabelRequest

DEFAULTS = LabelOptions(queries="caption")


def _arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run or checkpoint folder of the detector; a student trained on "
                        "the labels must have the same text tower")  # fmt: skip
    parser.add_argument("--pairs", type=Path, required=True, metavar="FOLDER", help="folder of tar shards")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for labels and ledgers")
    parser.add_argument("--queries", choices=get_args(QuerySource), default="caption",
                        help="queries for an image: its whole caption, the caption's n-grams or noun phrases, or "
                        "the same class names for every image (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="for --queries classes: text file of class names, one per line",
    )
    parser.add_argument("--templates", choices=get_args(Templates), help="prompt templates for names and "
                        "phrases, for the detector and for the text embeddings of the labels (default: those of the "
                        "run's training; a detector of --teacher-hf gets names and phrases without a template). "
                        "Captions never get a template. OWL-ViT and OWLv2 score the mean over the prompts; "
                        "Grounding DINO and MM Grounding DINO support only `none`")  # fmt: skip
    parser.add_argument("--teacher-hf", metavar="NAME", help="OWL-ViT, OWLv2, Grounding DINO or MM Grounding DINO of "
                        "Hugging Face (name or folder), which detects the boxes in place of RUN")  # fmt: skip
    add_expert_options(parser)
    parser.add_argument("--threshold", type=closed_fraction, default=DEFAULTS.score_threshold,
                        help="score above which boxes are kept; choose it low, since filters are applied later "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-boxes", type=positive_int, default=DEFAULTS.max_boxes,
                        help="number of boxes kept per image, those with the best scores; the best box of each text "
                        "is kept in any case (default: %(default)s)")  # fmt: skip
    parser.add_argument("--size", type=positive_int, help="longest image side in pixels (default: as trained)")
    parser.add_argument("--batch-size", type=positive_int, default=DEFAULTS.batch_size,
                        help="number of images per batch (default: %(default)s)")  # fmt: skip
    parser.add_argument("--shards", type=positive_int, metavar="N", help="label the first N shards only (default: "
                        "all)")  # fmt: skip
    parser.add_argument("--skip-unreadable", action="store_true",
                        help="continue and count the images that cannot be read, however many (default: stop after 100 "
                        "in a row, or 1 %% and at least 5)")  # fmt: skip
    parser.add_argument("--rank", type=nonnegative_int, help="this worker labels the shards RANK, RANK + WORLD, ... "
                        "(default: the environment variable RANK, which torchrun sets, else 0)")  # fmt: skip
    parser.add_argument(
        "--world", type=positive_int, help="number of workers (default: the environment variable WORLD_SIZE, else 1)"
    )
    parser.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="label on a Ray cluster: `auto` for "
                        "that of this machine; without an address, one is started on this machine")  # fmt: skip
    parser.add_argument("--workers", type=positive_int, metavar="N", help="for --ray: number of actors (default: one "
                        "per GPU; without GPUs, one per --threads cores)")  # fmt: skip
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: as trained; with torchrun the GPU "
                        "LOCAL_RANK)")  # fmt: skip
    parser.add_argument("--threads", type=positive_int, default=2, help="number of CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if (arguments.queries == "classes") != (arguments.classes_file is not None):
        parser.error("--queries classes and --classes-file FILE need each other")
    return arguments


def label_options(arguments: argparse.Namespace) -> LabelOptions:
    """Return the labeling options of the command line: the queries, and which boxes are kept.

    Raises:
        ValueError: as raised by `read_class_names`, or options cannot be combined.
    """
    from ovd.jobs.queries import read_class_names

    settings = {
        "queries": arguments.queries,
        "classes": () if arguments.classes_file is None else read_class_names(arguments.classes_file),
        "score_threshold": arguments.threshold,
        "max_boxes": arguments.max_boxes,
        "batch_size": arguments.batch_size,
    }
    return parse_config(settings, LabelOptions, "command line")


def label_request(arguments: argparse.Namespace, options: LabelOptions) -> "LabelRequest":
    """Return the label request of the command line: the pairs to label, and the settings."""
    from ovd.jobs.label_pairs import LabelRequest

    return LabelRequest(
        pairs=arguments.pairs,
        output=arguments.output,
        options=options,
        templates=arguments.templates,
        teacher_hf=arguments.teacher_hf,
        size=arguments.size,
        skip_unreadable=arguments.skip_unreadable,
    )


def label_locally(arguments: argparse.Namespace, options: LabelOptions) -> str:
    """Label the shards of this process, and return a summary."""
    import torch

    from ovd.build.trained import load_detector
    from ovd.jobs.label_pairs import device_of_worker, pseudo_label_run
    from ovd.selftrain.pseudo_label import resolve_worker, shards_of_worker

    torch.set_num_threads(arguments.threads)
    rank, world = resolve_worker(arguments.rank, arguments.world, os.environ)
    device = arguments.device or device_of_worker(os.environ)
    counts = pseudo_label_run(
        load_detector(arguments.run, device, experts=expert_group(arguments)),
        label_request(arguments, options),
        listed=shards_of_worker(arguments.pairs, rank=rank, world=world, num_shards=arguments.shards),
    )
    return counts.summary()


def label_on_cluster(arguments: argparse.Namespace, options: LabelOptions) -> str:
    """Label all shards on a Ray cluster, and return a summary.

    Raises:
        ValueError: an option belongs to a single process.
    """
    if (arguments.rank, arguments.world, arguments.device) != (None, None, None):
        raise ValueError("--rank, --world and --device cannot be used with --ray, whose workers choose their own")
    from ovd.jobs.ray_label import RayRequest, label_on_ray

    experts = expert_group(arguments)
    experts = replace(experts, folders=tuple(folder.resolve() for folder in experts.folders))
    labeling = label_request(arguments, options)
    labeling = replace(labeling, pairs=labeling.pairs.resolve(), output=labeling.output.resolve())
    if labeling.teacher_hf is not None and Path(labeling.teacher_hf).is_dir():
        labeling = replace(labeling, teacher_hf=str(Path(labeling.teacher_hf).resolve()))
    request = RayRequest(
        run=arguments.run.resolve(),
        labeling=labeling,
        experts=experts,
        threads=arguments.threads,
        num_shards=arguments.shards,
    )
    address = None if arguments.ray == "local" else arguments.ray
    return label_on_ray(request, address=address, workers=arguments.workers).summary()


def main() -> None:
    arguments = _arguments()
    if arguments.workers is not None and arguments.ray is None:
        raise ValueError("--workers needs --ray; without it, start one process for each --rank of --world")
    refuse_missing_run(arguments.run)
    options = label_options(arguments)
    done = label_locally(arguments, options) if arguments.ray is None else label_on_cluster(arguments, options)
    print(f"{arguments.output}: {done}")
