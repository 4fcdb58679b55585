"""Train a detector from a config.

    ovd train configs/quickstart_base.yaml
    ovd train configs/quickstart_base.yaml train.steps=50 output=runs/short
    ovd train configs/quickstart_base.yaml --resume
    ovd train configs/quickstart_base.yaml --preflight        # check all data, train nothing

The run folder gets config.yaml, checkpoints (step-*/), training_images.jpg (the first batch with its boxes),
metrics.jsonl, tensorboard/, curves.png, data_report.json and, where the config names a validation set, metrics.json,
per_class.csv, precision_recall.png and predictions.jpg (some images with found and missed objects).
"""

import argparse
from pathlib import Path

from ovd.cli import EXIT_BAD_INPUT, add_overrides, parse_with_overrides
from ovd.config.training import TrainConfig
from ovd.config_files import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    add_overrides(parser, help="for example train.steps=50")
    parser.add_argument("--resume", action="store_true", help="continue from the run folder's newest checkpoint")
    parser.add_argument(
        "--strict-resume", action="store_true", help="like --resume, but stop if that checkpoint is damaged"
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="do not train, but read both data sets, every image and the vocabulary, build the detector, and print "
        "what training would do; exit with 2 if it would stop",
    )
    arguments = parse_with_overrides(parser)
    config = load_config(arguments.config, arguments.overrides, TrainConfig)  # before imports that take seconds
    from ovd.jobs.preflight import preflight
    from ovd.jobs.train import train_from_config

    resume = arguments.resume or arguments.strict_resume
    if arguments.preflight:
        if not preflight(config, resume=resume, strict_resume=arguments.strict_resume):
            raise SystemExit(EXIT_BAD_INPUT)
        return
    train_from_config(config, resume=resume, strict_resume=arguments.strict_resume)
    if config.expert is not None:
        print("trained, but the expert is not written yet: run ovd fine-tune with the same config and settings")
