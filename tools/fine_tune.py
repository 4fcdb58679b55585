"""Fine-tune a trained detector on your own boxes, and see what it gains on them and what it loses elsewhere.

    python tools/fine_tune.py configs/custom_coco.yaml init_from=runs/quickstart output=runs/mine \
        data.source.train_annotations=mine/train.json data.source.train_images=mine/images \
        data.source.val_annotations=mine/val.json data.source.val_images=mine/images

Evaluates the detector before and after, and the average of the two sets of weights, on your validation set and on the
one that the detector was trained with. docs/fine_tuning.md walks through it. Run again, it goes on where it stopped.
"""

import argparse
from pathlib import Path

from ovd.cli import run_tool
from ovd.config import TrainConfig, load_config
from ovd.jobs.fine_tune import fine_tune, format_outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/custom_coco.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.steps=100")
    parser.add_argument("--weight", type=float, default=0.5, help="of the new weights in the average (%(default)s)")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides, TrainConfig)
    print(format_outcomes(fine_tune(config, weight=arguments.weight)))


if __name__ == "__main__":
    run_tool(main)
