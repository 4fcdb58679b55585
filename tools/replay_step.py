"""Look again at a training step that had a loss or gradient that was not finite.

    python tools/replay_step.py runs/mine/failed-step-000120.rank0.pt

Prints each image's losses in float32, as part of the batch, and whether what the detector predicts for it is finite.
"""

import argparse
from pathlib import Path

from ovd.cli import run_tool
from ovd.jobs.replay_step import replay_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, help="failed-step-*.pt in a run folder, whose config.yaml is used")
    replay_step(parser.parse_args().dump)


if __name__ == "__main__":
    run_tool(main)
