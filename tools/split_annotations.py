"""Split an annotation file into two by image, for example to train on one part and validate on the other.

python tools/split_annotations.py mine/all.json --share 0.8 --first mine/train.json --second mine/val.json

The same as `ovd split`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.split import main

if __name__ == "__main__":
    run_tool(main)
