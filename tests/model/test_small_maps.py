"""The convolution of small maps as one matrix product, against torch's convolution map by map."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.model.convolution import Conv2d
from ovd.model.fcos_head import FcosHead
from ovd.model.small_maps import convolve_small_maps, is_small

SIZES = ((7, 10), (4, 5), (1, 3), (1, 1))


def random(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], SIZES[3:]], ids=len)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_and_gradients_are_those_of_one_map_at_a_time(
    batch_size: int, sizes: tuple[tuple[int, int], ...], side: int
) -> None:
    maps = [random(batch_size, 4, *size, seed=number) for number, size in enumerate(sizes)]
    weight, bias = random(6, 4, side, side, seed=8), random(6, seed=9)
    expected = [F.conv2d(one, weight, bias, padding=side // 2) for one in maps]
    measured = convolve_small_maps(maps, weight, bias)
    slopes = [random(*one.shape, seed=20 + number).detach() for number, one in enumerate(expected)]
    inputs = (*maps, weight, bias)
    torch.testing.assert_close(measured, expected)
    torch.testing.assert_close(
        torch.autograd.grad(measured, inputs, slopes), torch.autograd.grad(expected, inputs, slopes)
    )


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("height", [8, 40])
def test_levels_large_and_small_are_those_of_one_at_a_time(height: int, low_precision: bool) -> None:
    torch.manual_seed(0)
    convolution = Conv2d(32, 16, 3, padding=1).to(memory_format=torch.channels_last)
    levels = [torch.randn(2, 32, height >> level, 24 >> level, requires_grad=True) for level in range(4)]
    assert len({is_small(level) for level in levels}) == (1 if height == 8 else 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        measured = convolution.forward_levels(levels)
        expected = [convolution(level) for level in levels]
    torch.testing.assert_close(measured, expected, rtol=1e-2, atol=1e-2 if low_precision else 1e-5)
    inputs = (*levels, *convolution.parameters())
    gradients = [
        torch.autograd.grad(torch.cat([one.float().flatten() for one in results]).square().sum(), inputs)
        for results in (measured, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=2e-2 if low_precision else 1e-5)


def test_a_head_in_training_predicts_what_it_does_without_gradients() -> None:
    torch.manual_seed(0)
    head = FcosHead(32, 2, [8, 16, 32])
    pyramid = [torch.randn(2, 32, 24 >> level, 40 >> level) for level in range(3)]
    features, boxes, quality = head(pyramid)
    assert boxes.requires_grad
    with torch.no_grad():
        plain_features, plain_boxes, plain_quality = head(pyramid)
    torch.testing.assert_close(features, plain_features)
    torch.testing.assert_close(boxes, plain_boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quality, plain_quality)
