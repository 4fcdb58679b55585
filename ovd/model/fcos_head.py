"""FCOS head (Tian et al. 2019): two convolutional towers shared by all levels; boxes and centerness at every point."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.model.convolution import Conv2d
from ovd.model.group_norm import GroupNorm
from ovd.structures import Points


def conv_tower(channels: int, num_convs: int) -> nn.Sequential:
    """Create a tower of 3 x 3 convolutions, each with group norm and ReLU."""
    layers: dict[str, nn.Module] = {}
    for first in range(0, 3 * num_convs, 3):  # weights are numbered as if each ReLU were a module
        layers[str(first)] = Conv2d(channels, channels, 3, padding=1)
        layers[str(first + 1)] = GroupNorm(channels, relu=True)
    return nn.Sequential(OrderedDict(layers))


class FcosHead(nn.Module):
    """FCOS head with a box and a class tower; gates.py projects the class tower's features into the text space."""

    def __init__(self, channels: int, num_convs: int, strides: list[int]):
        super().__init__()
        self.strides = strides
        self.class_tower = conv_tower(channels, num_convs)
        self.box_tower = conv_tower(channels, num_convs)
        self.distances = Conv2d(channels, 4, 3, padding=1)
        self.quality = Conv2d(channels, 1, 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(len(strides)))
        initialize_outputs(self.distances, self.quality)

    def forward(
        self, pyramid: list[Float[Tensor, "B C ..."]]
    ) -> tuple[list[Float[Tensor, "B C ..."]], Float[Tensor, "B P 4"], Float[Tensor, "B P"]]:
        """Compute class features per level, and boxes (xyxy, pixels) and quality logits of all points."""
        class_features = self._apply_tower(self.class_tower, pyramid)
        box_features = self._apply_tower(self.box_tower, pyramid)
        boxes, quality = [], []
        outputs = zip(
            self.distances.forward_levels(box_features), self.quality.forward_levels(box_features), strict=True
        )
        for (distances, logits), scale, stride in zip(outputs, self.level_scales, self.strides, strict=True):
            boxes.append(boxes_around(distances_px(distances, scale, stride), stride))
            quality.append(logits.float().flatten(1))
        return class_features, torch.cat(boxes, dim=1), torch.cat(quality, dim=1)

    def _apply_tower(
        self, tower: nn.Sequential, levels: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B C ..."]]:
        """Apply a tower to each level."""
        for layer in tower:
            levels = layer.forward_levels(levels) if isinstance(layer, Conv2d) else [layer(level) for level in levels]
        return levels


def initialize_outputs(distances: Conv2d, quality: Conv2d) -> None:
    """Draw the initial weights of a head's last convolutions."""
    # A bias of 2 makes initial boxes about four strides wide.
    for layer, bias in ((distances, 2.0), (quality, 0.0)):
        assert layer.bias is not None
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, bias)


def distances_px(outputs: Float[Tensor, "B 4 h w"], scale: Float[Tensor, ""], stride: int) -> Float[Tensor, "B 4 h w"]:
    """Compute float32 distances to a box's sides from a head's outputs of any sign and the level's learned scale."""
    return F.softplus(outputs.float() * scale) * stride


def level_centers(size: tuple[int, int] | torch.Size, stride: int, device: torch.device) -> Float[Tensor, "P 2"]:
    """Return x, y of the centers of a level's cells, row by row, in pixels of the input."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2).float() + 0.5) * stride


def boxes_around(distances: Float[Tensor, "B 4 h w"], stride: int) -> Float[Tensor, "B P 4"]:
    """Return xyxy boxes from the distances in pixels of left, top, right and bottom side to the cells' centers."""
    left, top, right, bottom = distances.flatten(2).unbind(1)
    x, y = level_centers(distances.shape[-2:], stride, distances.device).unbind(-1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def make_points(image_size: tuple[int, int], strides: list[int], device: torch.device) -> Points:
    """Return the points of all levels for images of this height and width."""
    centers, point_strides = [], []
    for stride in strides:
        size = ((image_size[0] + stride - 1) // stride, (image_size[1] + stride - 1) // stride)
        centers.append(level_centers(size, stride, device))
        point_strides.append(torch.full_like(centers[-1][:, 0], stride))
    return Points(torch.cat(centers), torch.cat(point_strides))
