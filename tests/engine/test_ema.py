"""The moving average of weights against a loop over scalars."""

import pytest
import torch
from torch import nn

from ovd.engine.ema import Ema


def test_average_equals_a_loop_over_scalars():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, (1, 2)), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    ema = Ema(net, decay=0.3)
    expected = {name: tensor.double().clone() for name, tensor in net.state_dict().items()}
    for t in range(6):
        net(torch.randn(2, 2, 3, 5))  # changes the running statistics
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(net)
        decay = min(0.3, (1 + t) / (10 + t))
        for name, tensor in net.state_dict().items():
            blended = decay * expected[name] + (1 - decay) * tensor.double()
            expected[name] = blended if tensor.is_floating_point() else tensor.double()
    state = ema.state_dict()
    assert state["1.num_batches_tracked"] == 6
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    ema.copy_to(net)
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)


def test_average_of_bfloat16_is_float32_and_frozen_weights_keep_their_bits():
    net = nn.Linear(3, 2)
    frozen = net.weight.detach().clone()
    ema = Ema(net, decay=0.999)
    for _ in range(20):
        ema.update(net)
    assert torch.equal(ema.state_dict()["weight"], frozen)
    low = Ema(nn.Linear(3, 2).bfloat16(), decay=0.9)
    assert all(tensor.dtype == torch.float32 for tensor in low.state_dict().values())


def test_average_follows_what_is_frozen_only_for_a_while():
    net = nn.Linear(3, 2).requires_grad_(False)
    ema = Ema(net, decay=0.0)
    ema.update(net)
    net.requires_grad_(True)
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(net)
    assert torch.equal(ema.state_dict()["weight"], net.weight)


def test_average_moves_to_frozen_weights_that_it_starts_away_from():
    net = nn.Linear(3, 2).requires_grad_(False)
    ema = Ema(net, decay=0.0)
    ema.update(net)
    ema.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()}, num_updates=1)
    ema.update(net)
    assert torch.equal(ema.state_dict()["weight"], net.weight)


def test_average_resumes_bit_identically():
    torch.manual_seed(0)
    steps = [nn.Linear(3, 2) for _ in range(8)]
    whole = Ema(steps[0], decay=0.5)
    for net in steps:
        whole.update(net)
    first = Ema(steps[0], decay=0.5)
    for net in steps[:3]:
        first.update(net)
    second = Ema(nn.Linear(3, 2), decay=0.5)
    second.load_state_dict(first.state_dict(), first.num_updates)
    for net in steps[3:]:
        second.update(net)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in whole.state_dict().items())
    with pytest.raises(ValueError, match="different tensors: bias"):
        second.load_state_dict({"weight": torch.zeros(2, 3)}, 1)
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay"):
            Ema(nn.Linear(3, 2), decay=decay)


def test_an_average_of_other_weights_is_refused():
    average = Ema(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match="more"):
        average.load_state_dict({**average.state_dict(), "more": torch.zeros(1)}, 0)
