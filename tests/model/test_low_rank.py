"""Low-rank adapters have no effect at the start, and then add the product that defines them, in every family."""

from itertools import chain

import pytest
import torch
from small_backbones import FAMILIES, SLOW, random_visual

from ovd.model.backbone_families import backbone_from_visual
from ovd.model.low_rank import LowRank, adapters_of, add_adapters, add_stored_adapter, with_adapter_names
from ovd.model.shared_layers import shared_parameters

CASES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW | {"siglip", "eva02"} else []) for name in FAMILIES
]


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_fresh_adapters_change_nothing_and_others_are_a_sum_of_weights(family: str) -> None:
    plain, adapted = backbone_from_visual(random_visual(family)), backbone_from_visual(random_visual(family))
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    images = torch.randn(1, 3, *2 * (2 * plain.size_divisor,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    num_layers = len(plain.layers())
    adapted.requires_grad_(False)
    add_adapters(adapted, adapted.parameters(), rank=2)
    assert len(adapted.layers()) == num_layers
    assert torch.equal(adapted.dense(images), plain.dense(images))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(adapters_of(adapted)) > 4

    for adapter in adapters_of(adapted):
        adapter.up.copy_(0.05 * torch.randn(adapter.up.shape))
    state = adapted.state_dict()
    for name, parameter in plain.named_parameters():
        parameter.copy_(add_stored_adapter(name, parameter.data, state))
    assert torch.equal(adapted.dense(images), plain.dense(images))
    renamed = with_adapter_names(weights, adapted)
    assert renamed.keys() == state.keys()
    adapted.load_state_dict(renamed)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapted.state_dict().items())


@pytest.mark.parametrize("family", CASES)
def test_every_adapter_gets_a_gradient(family: str) -> None:
    """Every adapter gets a gradient, which data parallelism waits for."""
    backbone = backbone_from_visual(random_visual(family)).requires_grad_(False)
    add_adapters(backbone, shared_parameters(backbone, 0), rank=2)
    output = backbone(torch.randn(1, 3, *2 * (2 * backbone.size_divisor,)))
    maps = (backbone.project_locations(output.last), *output.features)
    torch.stack([values.square().sum() for values in maps]).sum().backward()
    trained = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert len(trained) > 4
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_a_rank_beyond_the_weights_is_theirs() -> None:
    adapter = LowRank(torch.zeros(3, 2, 1, 1), rank=10)
    assert adapter.up.shape == (3, 2)
    assert adapter.down.shape == (2, 2)


def test_only_the_weights_that_are_named_get_adapters() -> None:
    backbone = backbone_from_visual(random_visual("convnext"))
    below, own = backbone.layers()[:2], backbone.layers()[2:]
    add_adapters(backbone, chain.from_iterable(below), rank=2)
    weights = {id(parameter) for parameter in chain.from_iterable(below) if parameter.ndim > 1}
    parameters = backbone.named_parameters()
    adapted = {id(parameter) for name, parameter in parameters if name.endswith("parametrizations.weight.original")}
    assert adapted == weights
    assert len(adapters_of(backbone)) == len(weights) > 0
    assert not adapted & {id(parameter) for parameter in chain.from_iterable(own)}
