"""Align a CLIP model's dense feature with the model's embeddings of image crops, by self-distillation.

python tools/align_backbone.py configs/align_tiny.yaml

The same as `ovd align-backbone`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.align_backbone import main

if __name__ == "__main__":
    run_tool(main)
