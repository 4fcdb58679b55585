"""Evaluate a trained detector on a data set with any vocabulary, or an existing results file.

python tools/eval.py runs/quickstart                                     # the run's validation set

The same as `ovd eval`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.eval import main

if __name__ == "__main__":
    run_tool(main)
