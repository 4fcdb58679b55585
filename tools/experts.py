"""List experts, check them against a detector, print which one answers a query, remove one.

python tools/experts.py list runs/mine runs/other

The same as `ovd experts`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.experts import main

if __name__ == "__main__":
    run_tool(main)
