"""Measure how many of a teacher's pseudo-labels are correct, and how many of the known true objects they find.

python tools/label_quality.py LABELS_FOLDER --pairs data/world/KEY/pairs

The same as `ovd label-quality`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.label_quality import main

if __name__ == "__main__":
    run_tool(main)
