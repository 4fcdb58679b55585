"""Images as a CLIP model was trained on them."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class Normalization(nn.Module):
    """(image - mean) / std of each color, with the numbers that a backbone was trained with; checkpoints lack them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        """
        Args:
            mean, std: RGB in 0..1.
        """
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """RGB images, 0..255, normalized in float32; in memory channels last."""
        # Line by line, as decoded images lie in memory: a pixel's three colors alone are a short row for a processor.
        lines, width = images.permute(0, 2, 3, 1).flatten(2), images.shape[-1]
        lines = (lines.float() - self.mean.repeat(width)).div_(self.std.repeat(width))
        return lines.unflatten(2, (width, 3)).permute(0, 3, 1, 2)
