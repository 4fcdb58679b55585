"""Images of unlike sizes as one tensor, padded with zeros at the right and bottom."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ovd.data.buckets import Shape, padded_shape


def pad_images(
    images: Sequence[UInt8[Tensor, "3 _ _"]], *, divisor: int = 1, shapes: tuple[Shape, ...] = ()
) -> tuple[UInt8[Tensor, "B 3 H W"], Int64[Tensor, "B 2"]]:
    """The images in one tensor on the CPU, and their own heights and widths.

    Args:
        images: any number, also none.
        divisor: of the common sides.
        shapes: heights and widths that are allowed, the smallest that holds all images is taken; where none does, or
            none is given, the common sides are as small as they can be.
    """
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64).reshape(-1, 2)
    height, width = (-(-max(sides, default=1) // divisor) * divisor for sides in sizes.T.tolist())
    height, width = padded_shape(height, width, shapes)
    # From NumPy, which asks the system for large pages of memory, as torch does not: they are there sooner.
    padded = np.empty((len(images), 3, height, width), dtype=np.uint8)
    spare = np.empty((height, width, 3), dtype=np.uint8)
    for place, image in zip(padded, images, strict=True):
        _pad(image.cpu().numpy(), place, spare)
    return torch.from_numpy(padded), sizes


def _pad(
    image: UInt8[np.ndarray, "3 h w"], place: UInt8[np.ndarray, "3 H W"], spare: UInt8[np.ndarray, "H W 3"]
) -> None:
    """Writes an image and the zeros around it into its place."""
    height, width = image.shape[1:]
    if image.strides[0] == 1:  # decoders put the colors of a pixel beside each other, and OpenCV parts them fastest
        spare[:height, :width] = image.transpose(1, 2, 0)
        spare[:height, width:] = 0
        spare[height:] = 0
        cv2.split(spare, list(place))
    else:
        place[:, :height, :width] = image
        place[:, :height, width:] = 0
        place[:, height:] = 0
