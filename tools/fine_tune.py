"""Fine-tune a trained detector on your own boxes, and measure the gain on them and the loss on the original data.

    python tools/fine_tune.py configs/expert.yaml init_from=runs/quickstart output=runs/mine \
        data.source.train_annotations=mine/train.json data.source.train_images=mine/images \
        data.source.val_annotations=mine/val.json data.source.val_images=mine/images

The same as `ovd fine-tune`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.fine_tune import main

if __name__ == "__main__":
    run_tool(main)
