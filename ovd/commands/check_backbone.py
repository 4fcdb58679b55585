"""Measure how well a CLIP backbone's dense feature agrees with its pooled embedding; needs real weights.

    ovd check-backbone RN50-quickgelu --weights openai --images data/coco/val2017 --count 200
    ovd check-backbone tiny --images data/world/KEY/images/val

For each image, resized to the backbone's native size, it computes the cosine between the pooled embedding and the mean
over locations of the dense feature and, for comparison, between the pooled embeddings of two different images. With
random weights both are meaningless.
"""

import argparse
from pathlib import Path
from typing import get_args

from PIL import Image

from ovd.choices import Activation
from ovd.data.images.files import images_below
from ovd.data.images.read import read_image
from ovd.progress import progress


def _arguments() -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="as clip.name in a config")
    parser.add_argument("--weights", help="as clip.weights in a config")
    parser.add_argument("--activation", choices=get_args(Activation), help="as clip.activation, for a local file")
    parser.add_argument("--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="as clip.mean, for a local file")
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"), help="as clip.std, for a local file")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--count", type=int, default=100, help="number of images (%(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    import torch
    from torch.nn import functional as F

    from ovd.clip.load import load_clip
    from ovd.model.backbone_families import backbone_of

    clip = load_clip(
        arguments.clip,
        arguments.weights,
        activation=arguments.activation,
        mean=arguments.mean and tuple(arguments.mean),
        std=arguments.std and tuple(arguments.std),
    )
    backbone = backbone_of(clip.model.visual).eval()
    side = clip.model.visual.image_size
    height, width = side if isinstance(side, tuple) else (side, side)
    files = images_below(arguments.images)[: arguments.count]
    if len(files) < 2:
        raise ValueError(f"{arguments.images} has {len(files)} images; give a folder with at least two")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    pooled, dense = [], []
    for path in progress(files, len(files), "images"):
        pixels = Image.fromarray(read_image(path)).resize((width, height), Image.Resampling.BICUBIC)
        image = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(height, width, 3)
        batch = ((image.permute(2, 0, 1) / 255 - mean) / std)[None]
        with torch.no_grad():
            pooled.append(F.normalize(backbone.encode(batch)[0], dim=0))
            dense.append(F.normalize(backbone.dense(batch).mean((2, 3))[0], dim=0))
    ours, own = torch.stack(dense), torch.stack(pooled)
    same = (ours * own).sum(1)
    other = (own * own.roll(1, 0)).sum(1)
    print(f"{arguments.clip}, {len(files)} images of {height} x {width} px")
    print(f"mean dense feature and pooled embedding   cosine {same.mean():.3f} (least {same.min():.3f})")
    print(f"pooled embeddings of two images           cosine {other.mean():.3f}")
