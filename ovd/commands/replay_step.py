"""Replay a training step whose loss or gradient was not finite.

    ovd replay-step runs/mine/failed-step-000120.rank0.pt

The output has the losses of each image in float32, and whether the detector's predictions for it are finite.
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, help="file failed-step-*.pt in a run folder, whose config.yaml is used")
    arguments = parser.parse_args()
    from ovd.jobs.replay_step import replay_step

    replay_step(arguments.dump)
