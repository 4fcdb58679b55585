"""Groups of parameters, and the parameters without weight decay."""

import pytest
import torch
from torch import nn

from ovd.engine.parameter_groups import GroupSpec, parameter_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.LayerNorm([4, 5, 6]))
        self.head = nn.Linear(4, 2)
        self.one_output = nn.Linear(4, 1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.gate = nn.Parameter(torch.zeros(()))

    def specs(self) -> dict[str, GroupSpec]:
        return {
            "backbone": GroupSpec([self.backbone], lr_factor=0.1, weight_decay=0.05),
            "rest": GroupSpec([self.head, self.one_output, self.gain, self.gate], weight_decay=0.02),
        }


def test_groups_split_by_decay_and_hold_each_parameter_once():
    net = Net()
    groups = parameter_groups(net, net.specs())
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    assert found == {
        "backbone": {"backbone.0.weight"},
        "backbone/no_decay": {"backbone.1.weight", "backbone.1.bias", "backbone.2.weight", "backbone.2.bias"},
        "rest": {"head.weight", "one_output.weight"},
        "rest/no_decay": {"head.bias", "one_output.bias", "gain", "gate"},
    }
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.02, 0.0]
    assert [group["lr_factor"] for group in groups] == [0.1, 0.1, 1.0, 1.0]


class Tokens(nn.Module):
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.Linear(4, 4, bias=False)
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("class_embedding", (4,)),
        ("positional_embedding", (7, 4)),  # as in open_clip
        ("cls_token", (1, 1, 4)),
        ("pos_embed", (1, 7, 4)),  # as in timm
        ("latent", (1, 1, 4)),
    ],
)
def test_tokens_and_positions_have_no_decay_whichever_library_they_come_from(name: str, shape: tuple[int, ...]) -> None:
    net = Tokens(name, shape)
    groups = parameter_groups(net, {"all": GroupSpec([net], weight_decay=0.05)})
    found = {group["name"]: [parameter.shape for parameter in group["params"]] for group in groups}
    assert found == {"all": [(4, 4)], "all/no_decay": [shape]}


def test_frozen_parameters_are_left_out():
    net = Net()
    net.backbone.requires_grad_(False)
    groups = parameter_groups(net, net.specs())
    assert [group["name"] for group in groups] == ["rest", "rest/no_decay"]


def test_a_parameter_in_no_group_two_groups_or_another_module_is_an_error():
    net = Net()
    specs = net.specs()
    with pytest.raises(ValueError, match=r"2 trainable parameters in no group: .*one_output\.weight"):
        parameter_groups(net, {**specs, "rest": GroupSpec([net.head, net.gain, net.gate])})
    with pytest.raises(ValueError, match=r"head\.weight is in two parameter groups: 'rest' and 'again'"):
        parameter_groups(net, {**specs, "again": GroupSpec([net.head])})
    with pytest.raises(ValueError, match="not in the module"):
        parameter_groups(net, {**specs, "foreign": GroupSpec([nn.Linear(2, 2)])})
