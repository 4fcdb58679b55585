"""Task-aligned head (TOOD, Feng et al. 2021, arXiv:2108.07755): both tasks mix the same interactive features.

It has the interface of `FcosHead`. The class features are projected into the text space in gates.py. The probability
that multiplies the class scores in the paper, and so aligns the two tasks, is the quality here: scores are
sqrt(class probability x quality).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.model.convolution import Conv2d
from ovd.model.fcos_head import boxes_around, distances_px, initialize_outputs
from ovd.model.group_norm import GroupNorm

REDUCTION = 4
"""Factor by which layers that take all interactive features together are narrower than the pyramid."""


class TaskDecomposition(nn.Module):
    """Task decomposition: a task's features from all interactive features, weighted by attention, then mixed."""

    def __init__(self, channels: int, num_layers: int):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(num_layers * channels, channels // REDUCTION),
            nn.ReLU(),
            nn.Linear(channels // REDUCTION, num_layers),
            nn.Sigmoid(),
        )
        self.mix = nn.Sequential(Conv2d(num_layers * channels, channels, 1), GroupNorm(channels, relu=True))

    def forward(self, layers: list[Float[Tensor, "B C h w"]]) -> Float[Tensor, "B C h w"]:
        pooled = torch.cat([layer.mean(dim=(2, 3)) for layer in layers], dim=1)
        weights = self.attention(pooled)[:, :, None, None, None].unbind(dim=1)
        return self.mix(torch.cat([layer * weight for layer, weight in zip(layers, weights, strict=True)], dim=1))


class TaskAlignedHead(nn.Module):
    """Task-aligned head: interactive convolutions for both tasks, and box sides taken from boxes at learned offsets."""

    def __init__(self, channels: int, num_convs: int, strides: list[int]):
        """
        Args:
            channels: width of the pyramid, a multiple of 32.
            num_convs: number of interactive convolutions; both tasks use the outputs of all.
            strides: strides of the pyramid's levels.
        """
        super().__init__()
        self.strides = strides
        self.interactive = nn.ModuleList(
            nn.Sequential(Conv2d(channels, channels, 3, padding=1), GroupNorm(channels, relu=True))
            for _ in range(num_convs)
        )
        self.class_tower = TaskDecomposition(channels, num_convs)
        self.box_tower = TaskDecomposition(channels, num_convs)
        self.distances = Conv2d(channels, 4, 3, padding=1)
        narrow = channels // REDUCTION
        last_of_quality, last_of_offsets = Conv2d(narrow, 1, 3, padding=1), Conv2d(narrow, 8, 3, padding=1)
        self.quality = nn.Sequential(Conv2d(num_convs * channels, narrow, 1), nn.ReLU(), last_of_quality)
        self.offsets = nn.Sequential(Conv2d(num_convs * channels, narrow, 1), nn.ReLU(), last_of_offsets)
        self.level_scales = nn.Parameter(torch.ones(len(strides)))
        initialize_outputs(self.distances, last_of_quality)
        for parameter in last_of_offsets.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, pyramid: list[Float[Tensor, "B C ..."]]
    ) -> tuple[list[Float[Tensor, "B C ..."]], Float[Tensor, "B P 4"], Float[Tensor, "B P"]]:
        """Compute class features per level, and boxes (xyxy, pixels) and quality logits of all points."""
        class_features, boxes, quality = [], [], []
        for level, (features, stride) in enumerate(zip(pyramid, self.strides, strict=True)):
            layers = []
            for convolution in self.interactive:
                features = convolution(features)
                layers.append(features)
            together = torch.cat(layers, dim=1)
            class_features.append(self.class_tower(layers))
            distances = distances_px(self.distances(self.box_tower(layers)), self.level_scales[level], stride)
            boxes.append(move_sides(distances, self.offsets(together).float(), stride))
            quality.append(self.quality(together).float().flatten(1))
        return class_features, torch.cat(boxes, dim=1), torch.cat(quality, dim=1)


def move_sides(
    distances: Float[Tensor, "B 4 h w"], offsets: Float[Tensor, "B 8 h w"], stride: int
) -> Float[Tensor, "B P 4"]:
    """Return xyxy boxes in pixels, with each side interpolated bilinearly from the boxes at the side's offset.

    If the result is inverted, the box of the point itself is returned, as in the authors' code.

    Args:
        distances: distances of left, top, right and bottom side from the cells' centers, in pixels.
        offsets: offsets of the sides, as for `sample_sides`.
    """
    unmoved = boxes_around(distances, stride)
    sides = unmoved.transpose(1, 2).unflatten(2, distances.shape[2:])
    moved = sample_sides(sides, offsets).flatten(2).transpose(1, 2)
    is_box = (moved[..., 2:] > moved[..., :2]).all(dim=-1, keepdim=True)
    return torch.where(is_box, moved, unmoved)


def sample_sides(sides: Float[Tensor, "B 4 h w"], offsets: Float[Tensor, "B 8 h w"]) -> Float[Tensor, "B 4 h w"]:
    """Sample each side's map bilinearly at the point moved by that side's offset.

    Args:
        offsets: x and y of left, top, right, bottom in turn, in cells. Beyond the border the border's value is used.
    """
    batch, _, height, width = sides.shape
    row, column = torch.arange(height, device=sides.device), torch.arange(width, device=sides.device)
    moved = offsets.reshape(batch * 4, 2, height, width)
    x, y = column + moved[:, 0], row[:, None] + moved[:, 1]
    maps = sides.reshape(batch * 4, 1, height, width)
    if sides.is_cuda and torch.are_deterministic_algorithms_enabled():
        return sample_bilinearly(maps[:, 0], x, y).view(batch, 4, height, width)
    # For grid_sample the outer borders of the first and last cell are -1 and 1. Width and height divide separately,
    # since a tensor of both would be copied to the GPU, which the capture of a CUDA graph forbids.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return sampled.reshape(batch, 4, height, width)


def sample_bilinearly(
    maps: Float[Tensor, "N h w"], x: Float[Tensor, "N H W"], y: Float[Tensor, "N H W"]
) -> Float[Tensor, "N H W"]:
    """Sample maps bilinearly, with a gradient that is deterministic on a GPU, too.

    It is slower than grid_sample, whose gradient is not deterministic there.

    Args:
        x, y: positions in cells. Beyond the border the border's value is used.
    """
    height, width = maps.shape[1:]
    left, x_share = _cell_before(x, width)
    top, y_share = _cell_before(y, height)
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    first = height * width * torch.arange(len(maps), device=maps.device)[:, None, None]
    numbers = maps.flatten()
    upper, lower = (
        torch.lerp(numbers[first + row * width + left], numbers[first + row * width + right], x_share)
        for row in (top, bottom)
    )
    return torch.lerp(upper, lower, y_share)


def _cell_before(at: Float[Tensor, "N H W"], length: int) -> tuple[Int[Tensor, "N H W"], Float[Tensor, "N H W"]]:
    """Return the last of `length` cells at or before each position, and the distance to it, both within the border."""
    # At the border and beyond there is no gradient, as in grid_sample.
    inside = torch.where((at > 0) & (at < length - 1), at, at.detach().clamp(0, length - 1))
    before = inside.detach().floor()
    return before.long(), inside - before
