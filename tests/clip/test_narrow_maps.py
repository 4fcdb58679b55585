"""Strided convolutions of narrow maps in bfloat16, against the same in float64.

On a CPU without AMX, torch's own convolution passes these tests, too.
"""

import pytest
import torch
from torch import Tensor, nn

from ovd.clip import narrow_maps

HEIGHTS, WIDTHS = (1, 2, 3, 9, 20), (1, 2, 3, 4, 5)
FORMS = (
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 8},
    {"kernel_size": 7, "stride": 2, "padding": 3},
    {"kernel_size": 3, "stride": (1, 2), "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "stride": 2},
)


def small_integers(*shape: int, seed: int) -> Tensor:
    """Make values whose sums of products are exact in bfloat16, too, since a CPU without bfloat16 instructions rounds
    partial sums."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def leave_garbage_behind() -> None:
    """Free memory that holds NaN, so that reading memory nobody has written shows."""
    garbage = [torch.full((1000 + 371 * number,), torch.nan).bfloat16() for number in range(20)]
    del garbage


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("height", HEIGHTS)
def test_result_and_gradients_are_those_of_float64(form: dict, height: int) -> None:
    convolution = nn.Conv2d(64, 64, **form)
    for width in WIDTHS:
        x = small_integers(2, 64, height, width, seed=width)
        weight = small_integers(*convolution.weight.shape, seed=1)
        bias = small_integers(64, seed=2)
        exact = [one.double().requires_grad_() for one in (x, weight, bias)]
        expected = convolution._conv_forward(*exact)
        gradient = small_integers(*expected.shape, seed=3)
        expected.backward(gradient.double())

        leave_garbage_behind()
        given = [one.to(memory_format=torch.channels_last) if one.ndim == 4 else one for one in (x, weight, bias)]
        given = [one.bfloat16().requires_grad_() for one in given]
        found = narrow_maps.convolve(convolution, *given)
        assert found.shape == expected.shape
        found.backward(gradient.bfloat16().to(memory_format=torch.channels_last))
        for ours, theirs in [
            (found, expected),
            *((one.grad, other.grad) for one, other in zip(given, exact, strict=True)),
        ]:
            assert ours is not None
            assert theirs is not None
            torch.testing.assert_close(ours.double(), theirs, rtol=2**-7, atol=1e-6)


def test_only_bfloat16_is_widened() -> None:
    convolution, x = nn.Conv2d(8, 8, 3, stride=2, padding=1), torch.ones(1, 8, 5, 1)
    assert not narrow_maps.is_narrow(convolution, x)
    assert narrow_maps.is_narrow(convolution, x.bfloat16())
    assert not narrow_maps.is_narrow(convolution, torch.ones(1, 8, 5, 3).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow_maps.is_narrow(convolution, x)
