r"""Fine-tune a trained detector on your own boxes, and measure the gain on them and the loss on the original data.

    ovd fine-tune configs/expert.yaml init_from=runs/quickstart output=runs/mine_expert \
        data.source.train_annotations=mine/train.json data.source.train_images=mine/images \
        data.source.val_annotations=mine/val.json data.source.val_images=mine/images
    ovd detect photo.jpg --classes "my thing, umbrella" --run runs/quickstart --expert runs/mine_expert

With `expert` in the config (configs/expert.yaml), the result is an expert in output/expert: it answers queries for your
names, and the detector that it started from answers all others as before. Without `expert` (configs/custom_coco.yaml),
the result is one set of weights, and the detectors before and after and the average of their weights are evaluated.
Evaluations use your validation set and that of the original training. docs/fine_tuning.md walks through it. The same
command continues an interrupted run.
"""

import argparse
from pathlib import Path

from ovd.cli import add_overrides, parse_with_overrides
from ovd.config.training import TrainConfig
from ovd.config_files import load_config

WEIGHT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/expert.yaml")
    add_overrides(parser, help="for example train.steps=100")
    parser.add_argument("--weight", type=float, help="weight of the fine-tuned detector in the average with the "
                        f"starting one (default: {WEIGHT}); 1 makes no average; not for an expert")  # fmt: skip
    parser.add_argument("--no-kept", action="store_true", help="do not evaluate on the starting detector's validation "
                        "set, for example if it is large or not on this machine")  # fmt: skip
    arguments = parse_with_overrides(parser)
    config = load_config(arguments.config, arguments.overrides, TrainConfig)  # before imports that take seconds
    from ovd.distributed import is_main, process_group
    from ovd.jobs.fine_tune import fine_tune, format_outcomes

    if arguments.weight is not None and config.expert is not None:
        parser.error("--weight cannot be used with `expert` in the config: an expert is not averaged with its detector")
    weight = WEIGHT if arguments.weight is None else arguments.weight
    with process_group():
        outcomes = fine_tune(config, weight=weight, measures_kept=not arguments.no_kept)
        if is_main():
            print(format_outcomes(outcomes))
