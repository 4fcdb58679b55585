"""Replay a training step whose loss or gradient was not finite.

python tools/replay_step.py runs/mine/failed-step-000120.rank0.pt

The same as `ovd replay-step`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.replay_step import main

if __name__ == "__main__":
    run_tool(main)
