"""Measure how well a CLIP backbone's dense feature agrees with its pooled embedding."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.data.images.files import find_images
from ovd.data.images.read import read_images
from ovd.format_count import format_count
from ovd.model.backbone_families import backbone_from_visual
from ovd.progress import progress


@dataclass(frozen=True)
class Agreement:
    """Cosines between the dense and pooled embeddings of images."""

    num_images: int
    height: int
    """Height in pixels that every image is resized to; `width` likewise."""
    width: int
    dense_mean: float
    """Cosine between an image's mean dense feature and its pooled embedding, averaged over the images."""
    dense_min: float
    """Lowest of these cosines."""
    others_mean: float
    """Cosine between the pooled embeddings of two different images, averaged over the images."""


def measure_agreement(clip: Clip, folder: Path, *, count: int) -> Agreement:
    """Compare the dense and the pooled embedding of images, each resized to the backbone's native size.

    Args:
        folder: folder of the images.
        count: maximum number of images, at least two.

    Raises:
        ValueError: `count` is less than two, or there are fewer than two images that can be read.
        ImageError: no image can be read.
    """
    if count < 2:
        raise ValueError(f"--count {count}: two images are compared, so give at least 2")
    backbone = backbone_from_visual(clip.model.visual).eval()
    side = clip.model.visual.image_size
    height, width = side if isinstance(side, tuple) else (side, side)
    files = find_images(folder)[:count]
    if len(files) < 2:
        raise ValueError(f"{folder} has {format_count(len(files), 'image')}; give a folder with at least two")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    all_pooled, all_dense = list[Tensor](), list[Tensor]()
    for image_pixels in progress(read_images(files), len(files), "images"):
        pixels = Image.fromarray(image_pixels).resize((width, height), Image.Resampling.BICUBIC)
        image = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(height, width, 3)
        batch = ((image.permute(2, 0, 1) / 255 - mean) / std)[None]
        with torch.no_grad():
            all_pooled.append(F.normalize(backbone.encode(batch)[0], dim=0))
            all_dense.append(F.normalize(backbone.dense(batch).mean((2, 3))[0], dim=0))
    if len(all_pooled) < 2:
        raise ValueError(f"only one image of {folder} can be read; two are compared, so replace the damaged files")
    pooled, dense = torch.stack(all_pooled), torch.stack(all_dense)
    of_dense = (dense * pooled).sum(1)
    of_others = (pooled * pooled.roll(1, 0)).sum(1)
    return Agreement(
        len(pooled),
        height,
        width,
        dense_mean=of_dense.mean().item(),
        dense_min=of_dense.min().item(),
        others_mean=of_others.mean().item(),
    )
