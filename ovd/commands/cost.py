"""Predict the memory and time for training a config from counted operations.

    ovd cost configs/lvis_base_rn50.yaml
    ovd cost configs/lvis_base_nfnet_f6.yaml --gpus 16 --peak-tflops 459 --utilization 0.3

Nothing is computed and no weights are needed. Hours follow from the operations of the image side and the share of the
hardware's peak that training reaches, by default what was measured on one GPU (docs/cost.md), whose step ran as CUDA
graphs; several GPUs do without these, and may reach less. Evaluation is left out.
Memory is a lower bound: activations are counted as if all were bfloat16, and losses are left out.
"""

import argparse
from pathlib import Path

from ovd.cli import add_overrides
from ovd.commands.arguments import number_above_0, number_from_0_to_1, positive_number
from ovd.config.training import TrainConfig
from ovd.config_files import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    add_overrides(parser, help="for example train.batch_size=32")
    parser.add_argument(
        "--height",
        type=positive_number,
        help="in px (default: data.size, which batches of several images are padded to)",
    )
    parser.add_argument("--gpus", type=positive_number, default=8, help="default: %(default)s")
    parser.add_argument(
        "--peak-tflops", type=number_above_0, default=989.0, help="peak per GPU in bf16 (%(default)s: H100 SXM)"
    )
    parser.add_argument(
        "--utilization", type=number_from_0_to_1, help="share of the peak that is reached, 0 to 1 (default: measured)"
    )
    arguments = parser.parse_intermixed_args()
    from ovd.cost import MEASURED_UTILIZATION, count_cost

    if arguments.utilization == 0:
        parser.error("--utilization 0: nothing would be computed")
    utilization = arguments.utilization or MEASURED_UTILIZATION
    config = load_config(arguments.config, arguments.overrides, TrainConfig)
    height, width = arguments.height or config.data.size, config.data.size
    cost = count_cost(config, height, width)
    train = config.train
    per_rank = -(-train.batch_size // arguments.gpus // train.accumulate)
    hours = cost.training_hours(
        steps=train.steps, images=train.batch_size, peak_tflops=arguments.gpus * arguments.peak_tflops,
        utilization=utilization,
    )  # fmt: skip
    parameters, trained = cost.parameters / 1e6, cost.trained_parameters / 1e6
    memory = cost.training_bytes(per_rank) / 2**30
    print(f"{arguments.config}: {config.clip.name}, {height} x {width} px")
    print(f"parameters          {parameters:,.1f} M, {trained:,.1f} M of them trained")
    print(f"GFLOP per image     {cost.forward_flops / 1e9:,.0f} forward, {cost.training_flops / 1e9:,.0f} in training")
    print(f"memory, predicted   {memory:,.1f} GiB with {per_rank} images per GPU at a time")
    time = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    print(
        f"time, predicted     {time} for {train.steps:,} steps of {train.batch_size} images on "
        f"{arguments.gpus} GPUs of {arguments.peak_tflops:g} TFLOP/s at {utilization:.0%}"
    )
