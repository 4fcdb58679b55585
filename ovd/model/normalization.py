"""Normalization of images by the mean and standard deviation that a CLIP model was trained with."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class Normalization(nn.Module):
    """Normalization of each color, (image - mean) / std; checkpoints do not contain mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        """
        Args:
            mean, std: numbers that the backbone was trained with, for RGB in 0..1.
        """
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Normalize RGB images, 0..255, in float32; the result is channels last in memory."""
        # Line by line, as decoded images are stored: the three colors of one pixel are too short a row to be fast.
        lines, width = images.permute(0, 2, 3, 1).flatten(2), images.shape[-1]
        lines = (lines.float() - self.mean.repeat(width)).div_(self.std.repeat(width))
        return lines.unflatten(2, (width, 3)).permute(0, 3, 1, 2)
