"""Measure how well a CLIP backbone's dense feature agrees with its pooled embedding; needs real weights.

python tools/check_backbone.py RN50-quickgelu --weights openai --images data/coco/val2017 --count 200

The same as `ovd check-backbone`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.check_backbone import main

if __name__ == "__main__":
    run_tool(main)
