"""Label image-text pairs for self-training: a trained detector detects boxes, with queries from the captions.

python tools/pseudo_label.py runs/quickstart --pairs data/cc12m --output data/cc12m_labels

The same as `ovd label-pairs`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.label_pairs import main

if __name__ == "__main__":
    run_tool(main)
