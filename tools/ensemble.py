"""Average the weights of two runs, for example before and after self-training, into a third that can be evaluated.

python tools/ensemble.py runs/base runs/selftrained --weight 0.5 --output runs/ensembled

The same as `ovd ensemble`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.ensemble import main

if __name__ == "__main__":
    run_tool(main)
