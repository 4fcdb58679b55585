"""Detect classes of any name in an image.

python tools/demo.py photo.jpg --classes "umbrella, anchor:0.8, coffee cup" --run runs/quickstart

The same as `ovd detect`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.detect import main

if __name__ == "__main__":
    run_tool(main)
