"""Group norm of bfloat16 maps on a CPU against float64."""

import pytest
import torch
from torch.nn import functional as F

from ovd.model.group_norm import LARGE_MAP, GroupNorm


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("gradient_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 40)])
def test_results_and_gradients_are_exact_but_for_rounding(
    size: tuple[int, int], memory_format: torch.memory_format, gradient_format: torch.memory_format, relu: bool
) -> None:
    assert (size[0] * size[1] >= LARGE_MAP) == (size == (33, 40))
    torch.manual_seed(0)
    norm = GroupNorm(32, relu=relu)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = (3 * torch.randn(2, 32, *size) + torch.randn(1, 32, 1, 1)).bfloat16().to(memory_format=memory_format)
    slope = torch.randn(2, 32, *size).bfloat16().to(memory_format=gradient_format)
    x.requires_grad_()
    measured = norm(x)
    assert measured.dtype == torch.bfloat16
    assert measured.is_contiguous(memory_format=memory_format)
    gradients = torch.autograd.grad(measured, (x, norm.weight, norm.bias), slope)

    exact, weight, bias = (one.detach().double().requires_grad_() for one in (x, norm.weight, norm.bias))
    expected = F.group_norm(exact, 4, weight, bias, norm.eps)
    torch.testing.assert_close(measured.double(), expected.relu() if relu else expected, rtol=2**-7, atol=2**-7)
    # Both use the measured ReLU mask, so that a value that rounds to zero makes no difference.
    passed = slope.double() * (measured > 0) if relu else slope.double()
    wanted = torch.autograd.grad(expected, (exact, weight, bias), passed)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(gradients, wanted, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=2**-8)


def test_what_is_frozen_gets_no_gradient() -> None:
    norm, x = GroupNorm(32).requires_grad_(False), torch.randn(2, 32, 5, 5).bfloat16().requires_grad_()
    norm(x).float().square().sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None
    norm.requires_grad_(True)
    norm(x.detach()).float().sum().backward()
    assert norm.weight.grad is not None


def test_an_image_in_a_batch_has_the_result_that_it_has_alone() -> None:
    torch.manual_seed(0)
    norm, batch = GroupNorm(32), torch.randn(3, 32, 7, 12).bfloat16()
    together = norm(batch)
    for number, image in enumerate(batch.split(1)):
        assert torch.equal(norm(image)[0], together[number])
