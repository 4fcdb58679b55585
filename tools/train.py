"""Train a detector from a config.

    python tools/train.py configs/quickstart_base.yaml
    python tools/train.py configs/quickstart_base.yaml train.steps=50 output=runs/short
    python tools/train.py configs/quickstart_base.yaml --resume

The run folder gets config.yaml, checkpoints (step-*/), metrics.jsonl, tensorboard/, curves.png, data_report.json and,
where the config names a validation set, metrics.json, per_class.csv and precision_recall.png.
"""

import argparse
from pathlib import Path

from ovd.cli import run_tool
from ovd.config import TrainConfig, load_config
from ovd.jobs.train import train_from_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.steps=50")
    parser.add_argument("--resume", action="store_true", help="continue from the run folder's newest checkpoint")
    parser.add_argument("--strict-resume", action="store_true", help="as --resume; stop if that checkpoint is damaged")
    arguments = parser.parse_intermixed_args()
    train_from_config(
        load_config(arguments.config, arguments.overrides, TrainConfig),
        resume=arguments.resume or arguments.strict_resume,
        strict_resume=arguments.strict_resume,
    )


if __name__ == "__main__":
    run_tool(main)
