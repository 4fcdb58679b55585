"""Batch norms folded into frozen convolutions, and the folded weights that are kept between calls."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ovd.clip.folded_norm import FoldedConv2d, fold_norms


def make_net(*, folded: bool = True) -> Any:
    """Build a frozen net with random batch-norm statistics."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    norm = net[1]
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    if folded:
        fold_norms(net)
        assert isinstance(net[0], FoldedConv2d)
    return net.eval().requires_grad_(False)


def same_as_unfolded(net: Any) -> bool:
    plain = make_net(folded=False)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        return torch.allclose(net(x), plain(x), atol=1e-5)


def replace_weight(net: Any) -> None:
    net[0].weight = nn.Parameter(torch.randn_like(net[0].weight), requires_grad=False)


def move_weight(net: Any) -> None:
    net[0].weight.data = torch.randn_like(net[0].weight)


def take_a_step(net: Any) -> None:
    """Take a step of a fused optimizer, which writes weights in place without raising their version."""
    net.requires_grad_(True)
    assert same_as_unfolded(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    net(torch.randn(1, 3, 9, 9)).sum().backward()
    optimizer.step()


CHANGES: list[Callable[[Any], object]] = [
    lambda net: nn.init.normal_(net[0].weight),
    lambda net: nn.init.normal_(net[1].weight),
    lambda net: nn.init.normal_(net[1].bias),
    lambda net: nn.init.normal_(net[1].running_mean),
    lambda net: net[1].running_var.mul_(3),
    lambda net: net.load_state_dict({name: 2 * value for name, value in net.state_dict().items()}),
    replace_weight,
    move_weight,
    take_a_step,
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_a_change_is_seen(change: Callable[[Any], object]) -> None:
    net = make_net()
    assert same_as_unfolded(net)
    assert net[0].frozen.cached is not None
    change(net)
    assert same_as_unfolded(net)


@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_kept_has_the_bits_of_what_learns(autocast: bool) -> None:
    net, x = make_net(), torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        first, second = net(x), net(x)
        learned = net.requires_grad_(True)(x)
    assert learned.requires_grad
    assert torch.equal(first, learned)
    assert torch.equal(second, learned)


def test_precisions_take_turns() -> None:
    net, x = make_net(), torch.randn(2, 3, 9, 9)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
    assert torch.equal(net(x), exact)


def test_only_what_learns_gets_a_gradient() -> None:
    net = make_net()
    net[1].bias.requires_grad_(True)
    net(torch.randn(1, 3, 9, 9)).sum().backward()
    assert net[1].bias.grad is not None
    assert net[0].weight.grad is None
    assert net[0].frozen.cached is None
    net.requires_grad_(False)
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    net(x).sum().backward()  # gradients pass through frozen layers
    assert x.grad is not None
    assert net[0].frozen.cached is not None


def test_copies_are_without_what_is_kept() -> None:
    net = make_net()
    names = set(net.state_dict())
    assert same_as_unfolded(net)
    assert set(net.state_dict()) == names
    copied = copy.deepcopy(net)
    assert copied[0].frozen.cached is None
    nn.init.normal_(copied[0].weight)
    assert same_as_unfolded(copied)
    assert same_as_unfolded(net)
