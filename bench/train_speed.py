"""Measure training on generated images: images per second, memory, share of the peak, and whether the loss falls.

    python bench/train_speed.py configs/lvis_base_convnext_b.yaml --steps 500
    python bench/train_speed.py configs/quickstart_base.yaml --steps 20 --size 128 --batch-size 2

Scenes of the embedded world, resized to --size, replace the config's own data, and random weights those of its CLIP, so
that nothing need be downloaded. Classes have one text each. All else is as in the config, through the same loop. A
step's operations are counted, not measured (ovd/cost.py: the image side, without recomputation), and its share of the
peak is taken from the median step after the first tenth.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from measured import save

from ovd.build.detector import resolve_device
from ovd.cli import add_overrides
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.cost import count_cost
from ovd.engine.log import peak_memory_gib
from ovd.engine.metric_records import METRICS_FILE, read_records
from ovd.jobs.train import train_from_config
from ovd.precision import describe_machine

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Peak in TFLOP/s of dense bf16, by a part of the device's name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    add_overrides(parser, help="for example train.compile=true")
    parser.add_argument("--steps", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=800, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        own = load_config(arguments.config, [], TrainConfig)
        config = load_config(
            arguments.config,
            [
                *arguments.overrides,
                f"output={folder}/run", "data.source.kind=world", "data.repeat_threshold=0", "data.shape_groups=1",
                "bank.templates=none",
                f"data.size={arguments.size}", f"train.steps={arguments.steps}", f"train.save_every={arguments.steps}",
                f"train.batch_size={arguments.batch_size}", f"train.warmup_steps={min(50, arguments.steps // 2)}",
                *([] if own.clip.name == "tiny" else ["clip.weights=random"]),
            ],
            TrainConfig,
        )  # fmt: skip
        train_from_config(config, evaluate=False)
        records = read_records(config.output / METRICS_FILE)
    steps = [record for record in records if record["kind"] == "train"]
    tenth = max(1, len(steps) // 10)
    losses = [sum(step["losses"].values()) for step in steps]
    images_per_s = statistics.median(step["images_per_s"] for step in steps[tenth:])
    cost = count_cost(config, arguments.size, arguments.size)
    device = resolve_device(config)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in gpu), None)
    achieved = images_per_s * cost.training_flops / 1e12
    result = {
        "machine": describe_machine(device),
        "config": str(arguments.config),
        "overrides": arguments.overrides,
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "images_per_s": round(images_per_s, 2),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "gflop_per_image": round(cost.training_flops / 1e9),
        "tflop_per_s": round(achieved, 3),
        "share_of_peak": round(achieved / peak, 3) if peak else None,
        "loss_of_first_tenth": round(statistics.mean(losses[:tenth]), 4),
        "loss_of_last_tenth": round(statistics.mean(losses[-tenth:]), 4),
    }
    print(json.dumps(result, indent=2))
    name = "_".join(["train_speed", arguments.config.stem, *arguments.overrides])
    save(name, result, device)


if __name__ == "__main__":
    main()
