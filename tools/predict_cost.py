"""Predict the memory and time for training a config from counted operations.

python tools/predict_cost.py configs/lvis_base_rn50.yaml

The same as `ovd cost`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.cost import main

if __name__ == "__main__":
    run_tool(main)
