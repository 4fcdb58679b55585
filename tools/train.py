"""Train a detector from a config.

python tools/train.py configs/quickstart_base.yaml

The same as `ovd train`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.train import main

if __name__ == "__main__":
    run_tool(main)
