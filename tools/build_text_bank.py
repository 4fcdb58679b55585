"""Encode the text variants of many classes once, into a bank that trainings on any of these classes can read.

python tools/build_text_bank.py configs/quickstart_base.yaml bank.draws=4 bank.tower_dropout=0.02

The same as `ovd text-bank`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.text_bank import main

if __name__ == "__main__":
    run_tool(main)
