"""The convolution of pyramid and head, and the map that is added to its result."""

import pytest
import torch

from ovd.model.convolution import Conv2d


def random_map(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("learns", [False, True])
def test_a_map_in_float32_is_added_in_float32(learns: bool) -> None:
    torch.manual_seed(0)
    net = Conv2d(32, 64, 1).to(memory_format=torch.channels_last).requires_grad_(learns)  # type: ignore[call-overload]
    x, added = random_map(2, 32, 7, 9), torch.randn(2, 64, 7, 9)
    for _ in range(3):  # frozen weights are laid out from the second input on
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(net(x, added), net(x) + added)


@pytest.mark.parametrize("learns", [False, True])
def test_a_map_in_bfloat16_is_added_but_for_rounding(learns: bool) -> None:
    torch.manual_seed(0)
    net = Conv2d(32, 64, 1).to(memory_format=torch.channels_last).requires_grad_(learns)  # type: ignore[call-overload]
    x, added = random_map(2, 32, 7, 9), random_map(2, 64, 7, 9)
    with torch.no_grad():
        expected = net.float()(x.float()) + added.float()
    for _ in range(3):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            measured = net(x, added)
        assert measured.dtype == torch.bfloat16
        torch.testing.assert_close(measured.float(), expected, rtol=2**-6, atol=2**-6)


def test_gradients_reach_weight_input_and_what_is_added() -> None:
    torch.manual_seed(0)
    net = Conv2d(4, 8, 3, padding=1).double()
    x, added = torch.randn(2, 4, 5, 6).double().requires_grad_(), torch.randn(2, 8, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *maps: net(*maps), (x, added))
    net(x, added).sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.abs().sum() > 0
