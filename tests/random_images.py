"""Images of noise that depend on the seed alone."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def coarse_noise(seed: int, height: int, width: int) -> np.ndarray:
    """Make an H x W x 3 uint8 image in which crops at different places differ."""
    coarse = torch.rand(1, 3, height // 10 + 1, width // 10 + 1, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(255 * coarse, (height, width), mode="bilinear")
    return fine[0].permute(1, 2, 0).round().byte().numpy()


def normal_images(height: int, width: int, batch: int = 1) -> Tensor:
    """Make a B x 3 x H x W float batch, as a backbone takes it."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))
