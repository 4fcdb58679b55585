"""Measure how well a CLIP backbone's dense feature agrees with its pooled embedding; needs real weights.

    ovd check-backbone RN50-quickgelu --weights openai --images data/coco/val2017 --count 200
    ovd check-backbone tiny --images data/world/KEY/images/val

Images are resized to the backbone's native size. The command computes the cosine between each image's pooled embedding
and the mean of its dense feature over locations and, for comparison, between the pooled embeddings of two different
images. With random weights both are meaningless.
"""

import argparse
from pathlib import Path
from typing import get_args

from ovd.choices import Activation


def _arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="name or folder of a CLIP model, as clip.name in a config")
    parser.add_argument("--weights", help="pretrained tag or file, as clip.weights in a config")
    parser.add_argument("--activation", choices=get_args(Activation), help="for a local file, as clip.activation")
    parser.add_argument("--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="for a local file, as clip.mean")
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"), help="for a local file, as clip.std")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--count", type=int, default=100, help="number of images (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    from ovd.clip.load import load_clip  # here, since importing torch takes seconds
    from ovd.jobs.check_backbone import measure_agreement

    clip = load_clip(
        arguments.clip,
        arguments.weights,
        activation=arguments.activation,
        mean=arguments.mean and tuple(arguments.mean),
        std=arguments.std and tuple(arguments.std),
    )
    found = measure_agreement(clip, arguments.images, count=arguments.count)
    print(f"{arguments.clip}, {found.num_images:,} images of {found.height} x {found.width} px")
    print(f"mean dense feature and pooled embedding   cosine {found.dense_mean:.3f} (lowest {found.dense_min:.3f})")
    print(f"pooled embeddings of two images           cosine {found.others_mean:.3f}")
