"""Predict the memory and time for training a config from counted operations.

    ovd cost configs/lvis_base_rn50.yaml
    ovd cost configs/lvis_base_nfnet_f6.yaml --gpus 16 --peak-tflops 459 --utilization 0.3
    ovd cost configs/quickstart_base.yaml train.device=cpu --peak-tflops 0.2 --utilization 0.3

Nothing is computed and no weights are needed. Hours follow from the operations of the image side and the share of the
hardware's peak that training reaches, by default the share measured on one GPU (docs/cost.md), which ran its steps as
CUDA graphs; several GPUs run without these and may reach less. Evaluation is left out. Peak and share of a CPU
(train.device=cpu) are not known: its time is predicted only with --peak-tflops and --utilization.
Memory is a lower bound: activations are counted as if all were bfloat16, and losses are left out.
"""

import argparse
from pathlib import Path

from ovd.cli import add_overrides, parse_with_overrides
from ovd.commands.arguments import closed_fraction, positive_float, positive_int
from ovd.config.training import TrainConfig
from ovd.config_files import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    add_overrides(parser, help="for example train.batch_size=32")
    parser.add_argument(
        "--height",
        type=positive_int,
        help="image height in pixels (default: data.size, which batches of several images are padded to)",
    )
    parser.add_argument("--gpus", type=positive_int, help="number of GPUs (default: 8)")
    parser.add_argument(
        "--peak-tflops",
        type=positive_float,
        help="peak TFLOP/s of a GPU in bf16 (default: 989, H100 SXM), or of the CPU",
    )
    parser.add_argument(
        "--utilization",
        type=closed_fraction,
        help="share of the peak that training reaches, 0 to 1 (default: measured)",
    )
    arguments = parse_with_overrides(parser)
    if arguments.utilization == 0:
        parser.error("--utilization is 0; it must be above 0")
    config = load_config(arguments.config, arguments.overrides, TrainConfig)  # before imports that take seconds
    from ovd.jobs.predict_cost import Hardware, predict_cost

    hardware = Hardware.from_config(
        config, gpus=arguments.gpus, peak_tflops=arguments.peak_tflops, utilization=arguments.utilization
    )
    predicted = predict_cost(config, hardware, height=arguments.height)
    print(f"{arguments.config}: {config.clip.name}, {predicted.height} x {predicted.width} px")
    print(predicted.summary)
