"""Padding of images with different sizes to one tensor, with zeros at the right and bottom."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ovd.data.loading.buckets import Shape, padded_shape, round_up


def pad_images(
    images: Sequence[UInt8[Tensor, "3 _ _"]], *, divisor: int = 1, shapes: tuple[Shape, ...] = ()
) -> tuple[UInt8[Tensor, "B 3 H W"], Int64[Tensor, "B 2"]]:
    """Pad images to one tensor on the CPU, and return it with their own heights and widths.

    The tensor has the channels-last layout of decoded images, which computation in low precision uses, too.

    Args:
        images: any number of images, including none.
        divisor: divisor of the common sides.
        shapes: allowed heights and widths, of which the smallest that holds all images is used; if none does, or none
            is given, the common sides are as small as possible.
    """
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64).reshape(-1, 2)
    height, width = (round_up(max(sides, default=1), divisor) for sides in sizes.T.tolist())
    height, width = padded_shape(height, width, shapes)
    # Allocated by NumPy, which asks the system for large memory pages, unlike torch, and so gets the memory sooner.
    padded = np.empty((len(images), height, width, 3), dtype=np.uint8)
    for place, image, (own_height, own_width) in zip(padded, images, sizes.tolist(), strict=True):
        place[:own_height, :own_width] = image.cpu().permute(1, 2, 0).numpy()
        place[:own_height, own_width:] = 0
        place[own_height:] = 0
    return torch.from_numpy(padded).permute(0, 3, 1, 2), sizes
