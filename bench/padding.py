"""Measure how much of a training batch is padding, at the image sizes of an annotation file, in several orders.

    python bench/padding.py --annotations ../shared/data/lvis_val_100.json

20,000 sizes are drawn from the file, resized to a longest side of 1,333 px and put into batches of 16, in random order
within each of `data.shape_groups` groups. The padding, as a share of the images' own pixels, and the number of batch
shapes are printed; with one group, all batches have the shape that holds every image.
"""

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from measured import save

from ovd.choices import DataFormatName
from ovd.data.annotations import load_annotations
from ovd.data.loading.buckets import padded_shape, shape_groups
from ovd.data.loading.order import TrainOrder
from ovd.data.report import DataReport
from ovd.precision import describe_machine

NUM_IMAGES, BATCH_SIZE, LONGEST_SIDE, DIVISOR = 20_000, 16, 1333, 32
NUM_GROUPS = (1, 2, 4, 6, 8, 12)
MAX_SHAPES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--format", default="lvis", choices=get_args(DataFormatName))
    arguments = parser.parse_args()
    index = load_annotations(arguments.annotations, None, format=arguments.format, report=DataReport())
    known = index.image_sizes[index.image_sizes.min(axis=1) > 0]
    sizes = known[np.random.default_rng(0).integers(len(known), size=NUM_IMAGES)]
    rows: list[dict[str, float]] = []
    for num_groups in NUM_GROUPS:
        groups, shapes = shape_groups(sizes, num_groups, size=LONGEST_SIDE, divisor=DIVISOR)
        order = TrainOrder(
            num_images=NUM_IMAGES, repeat=np.ones(NUM_IMAGES), seed=0, batch_size=BATCH_SIZE, groups=groups
        )
        padded = used = 0
        seen = set()
        for step in range(NUM_IMAGES // BATCH_SIZE):
            own = np.array([sizes[image] for image, _ in order.batch(step)])
            resized = np.ceil(own * (LONGEST_SIDE / own.max(axis=1, keepdims=True))).astype(np.int64)
            tallest, widest = (-(-resized.max(axis=0) // DIVISOR) * DIVISOR).tolist()
            shape = padded_shape(tallest, widest, shapes)
            seen.add(shape)
            padded += BATCH_SIZE * shape[0] * shape[1]
            used += int(resized.prod(axis=1).sum())
        rows.append({"groups": num_groups, "padding": padded / used - 1, "shapes": len(seen)})
        print(f"{num_groups:3} groups  padding {100 * rows[-1]['padding']:6.1f} %  {len(seen):4} shapes")
    fitting = min(row["padding"] for row in rows if row["shapes"] <= MAX_SHAPES)
    ratio = {f"pixels of the images' own, {MAX_SHAPES} shapes": round(1 + fitting, 3)}
    device = torch.device("cpu")
    save("padding", {"machine": describe_machine(device), "ratio": ratio, "rows": rows}, device)


if __name__ == "__main__":
    main()
