"""The task-aligned head: the lookup of sides, the weighting of layers, and the interface that both heads share."""

import pytest
import torch
from torch.nn import functional as F

from ovd.model.t_head import TaskAlignedHead, TaskDecomposition, move_sides, sample_bilinearly, sample_sides


def test_no_offset_looks_nowhere_else():
    distances = torch.rand(2, 4, 5, 7)
    torch.testing.assert_close(sample_sides(distances, torch.zeros(2, 8, 5, 7)), distances)


def between(values: list[float], position: float) -> float:
    """Interpolate linearly; beyond the ends, the value at the end."""
    position = min(max(position, 0.0), len(values) - 1.0)
    low = min(int(position), max(0, len(values) - 2))
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


@pytest.mark.parametrize("size", [(5, 7), (1, 3)])
def test_sides_are_looked_up_bilinearly_and_not_beyond_the_border(size):
    height, width = size
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(2, 4, height, width, generator=generator)
    offsets = 3 * torch.randn(2, 8, height, width, generator=generator)
    found = sample_sides(distances, offsets)
    for image in range(2):
        for side in range(4):
            cells = distances[image, side].tolist()
            for row in range(height):
                for column in range(width):
                    x, y = (offsets[image, 2 * side + axis, row, column].item() for axis in (0, 1))
                    expected = between([between(line, column + x) for line in cells], row + y)
                    assert found[image, side, row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (1, 3), (1, 1)])
def test_samples_with_a_gradient_of_the_same_bits_are_those_of_grid_sample(size):
    height, width = size
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(8, height, width, generator=generator, dtype=torch.float64).requires_grad_()
    offsets = (3 * torch.randn(2, 8, height, width, generator=generator, dtype=torch.float64)).requires_grad_()
    moved = offsets.reshape(8, 2, height, width)
    found = sample_bilinearly(maps, torch.arange(width) + moved[:, 0], torch.arange(height)[:, None] + moved[:, 1])
    expected = sample_sides(maps.view(2, 4, height, width), offsets).view_as(found)
    torch.testing.assert_close(found, expected)
    slope = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    given = torch.autograd.grad(found, (maps, offsets), slope)
    torch.testing.assert_close(given, torch.autograd.grad(expected, (maps, offsets), slope))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_head_can_be_captured_in_a_cuda_graph():
    head = TaskAlignedHead(32, 2, [8, 16]).cuda()
    pyramid = [torch.randn(2, 32, 4, 6, device="cuda"), torch.randn(2, 32, 2, 3, device="cuda")]
    inputs = tuple(level.requires_grad_() for level in pyramid)
    module = _OnLevels(head).cuda()
    wanted = module(*inputs)
    graphed = torch.cuda.make_graphed_callables(_OnLevels(head), inputs, allow_unused_input=True)
    torch.testing.assert_close(graphed(*inputs), wanted)


class _OnLevels(torch.nn.Module):
    """A head that takes its levels as separate arguments, as CUDA graphs do."""

    def __init__(self, head: TaskAlignedHead):
        super().__init__()
        self.head = head

    def forward(self, *levels: torch.Tensor) -> torch.Tensor:
        return self.head(list(levels))[1]


def distances_to(box: list[float], height: int, width: int, stride: int) -> torch.Tensor:
    """Compute the distances from every cell's center to the sides of one box."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (x + 0.5) * stride, (y + 0.5) * stride
    left, top, right, bottom = box
    return torch.stack([x - left, y - top, right - x, bottom - y])[None]


def test_sides_that_all_points_agree_on_stay_wherever_they_are_taken_from() -> None:
    box = [3.0, 5.0, 40.0, 44.0]
    # Offsets may leave the map, beyond which the value at the border is used.
    offsets = 4 * torch.rand(1, 8, 6, 7, generator=torch.Generator().manual_seed(0)) - 2
    found = move_sides(distances_to(box, 6, 7, 8), offsets, 8)
    torch.testing.assert_close(found, torch.tensor(box).expand(1, 42, 4), atol=1e-4, rtol=0)


def test_a_box_that_would_be_inverted_stays_as_it_was() -> None:
    distances = torch.full((1, 4, 1, 4), 3.0)  # boxes 6 px wide around centers 8 px apart
    offsets = torch.zeros(1, 8, 1, 4)
    offsets[0, 4, 0, 2] = -2  # the third box gets the first box's right side
    found = move_sides(distances, offsets, 8)
    torch.testing.assert_close(found, move_sides(distances, torch.zeros_like(offsets), 8))


def test_decomposition_weighs_layers_by_what_the_image_shows():
    torch.manual_seed(0)
    split = TaskDecomposition(32, 3)
    layers = [torch.randn(2, 32, 4, 6) for _ in range(3)]
    first, _, second, _ = split.attention
    weights = torch.sigmoid(second(F.relu(first(torch.cat(layers, dim=1).mean((2, 3))))))
    images = [torch.cat([weights[image, k] * layers[k][image] for k in range(3)]) for image in range(2)]
    torch.testing.assert_close(split(layers), split.mix(torch.stack(images)))


def test_head_keeps_to_the_border_of_the_other():
    head = TaskAlignedHead(32, 2, [8, 16])
    features, boxes, quality = head([torch.randn(2, 32, 4, 6), torch.randn(2, 32, 2, 3)])
    assert [tuple(level.shape) for level in features] == [(2, 32, 4, 6), (2, 32, 2, 3)]
    assert boxes.shape == (2, 30, 4)
    assert quality.shape == (2, 30)
