"""Pretrain the tiny CLIP on the embedded world's image-text pairs, and measure its zero-shot accuracy on new scenes.

python tools/pretrain_clip.py configs/pretrain_tiny_clip.yaml              # continues an interrupted run
python tools/pretrain_clip.py configs/pretrain_tiny_clip.yaml --install    # and replaces the committed weights
"""

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ovd.cli import add_overrides, parse_with_overrides, run_tool
from ovd.clip.load import TINY_CLIP, build_untrained_tiny_clip, load_clip
from ovd.config.pretraining import PretrainConfig
from ovd.config_files import load_config
from ovd.data.world.build import build_world
from ovd.data.world.glyphs import load_glyphs
from ovd.data.world.settings import Settings
from ovd.engine.metric_records import METRICS_FILE, read_records
from ovd.files import write_json
from ovd.precision import describe_machine, use_low_precision
from ovd.text.encoder import encode_classes
from ovd.text.prompts import SHORT_TEMPLATES
from ovd.tiny_clip.canonical import participation_ratio
from ovd.tiny_clip.pretrain import load_pairs, pretrain, zero_shot_accuracy
from ovd.tiny_clip.projections import pair_features, solve_projections


def training_hours(config: PretrainConfig) -> float:
    """Return the time spent in training steps, in hours, over all resumes of the run."""
    records = read_records(config.output / METRICS_FILE)
    return sum(config.batch_size / record["images_per_s"] for record in records) / 3600


RESPREAD_PAIRS = 20_000
HELD_OUT_PAIRS = 2_560


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    add_overrides(parser, help="for example steps=100")
    parser.add_argument("--install", action="store_true", help=f"write the weights to {TINY_CLIP}")
    arguments = parse_with_overrides(parser)
    config = load_config(arguments.config, arguments.overrides, PretrainConfig)

    torch.set_num_threads(config.threads)
    settings = Settings(seed=config.data.seed)
    world = build_world(config.data.root, ("pretraining_pairs",), settings)
    images, captions = load_pairs(world / "pretraining_pairs")
    torch.manual_seed(config.seed)
    clip = build_untrained_tiny_clip()
    pretrain(clip, images, captions, config)
    features, held_out = (
        pair_features(
            clip,
            images[chosen],
            captions[chosen],
            crop=config.crop,
            low_precision=use_low_precision(config.precision, torch.device("cpu")),
        )
        for chosen in (slice(RESPREAD_PAIRS), slice(-HELD_OUT_PAIRS, None))
    )
    solve_projections(clip, features, held_out)
    folder = TINY_CLIP if arguments.install else config.output
    if not arguments.install:  # so that the folder can be given as `clip.name`
        for name in ("open_clip_config.json", "merges.txt.gz"):
            shutil.copyfile(TINY_CLIP / name, folder / name)
    weights = {name: tensor.half().contiguous() for name, tensor in clip.model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    clip = load_clip(str(folder))  # the reported accuracy is that of the float16 weights
    accuracy = zero_shot_accuracy(clip, settings)
    names = encode_classes(clip, [glyph.name for glyph in load_glyphs()], SHORT_TEMPLATES)
    worst = np.sort(accuracy)[: len(accuracy) // 10]
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "machine": describe_machine(torch.device("cpu")),
        "hours": round(training_hours(config), 2),
        "zero_shot_top1": round(float(accuracy.mean()), 4),
        "dimensions_of_the_class_names": round(participation_ratio(names), 1),
        "zero_shot_top1_of_the_worst_tenth_of_classes": round(float(worst.mean()), 4),
    }
    write_json(folder / "report.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_tool(main)
