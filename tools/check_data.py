"""Check a whole data set and print its faults, record by record.

python ../tools/check_data.py lvis --annotations lvis/lvis_v1_val.json --images coco

The same as `ovd check`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.check import main

if __name__ == "__main__":
    run_tool(main)
