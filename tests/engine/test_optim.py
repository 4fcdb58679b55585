"""Groups, schedule, average and clipping against torch's own schedulers, plain formulas and by-hand loops."""

import copy
import math

import pytest
import torch
from torch import nn

from ovd.engine.optim import (
    Ema,
    GroupSpec,
    NonFiniteError,
    build_optimizer,
    check_finite,
    gradient_norm,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
    step_if_finite,
)


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
        ("positional_embedding", (7, 4)),  # open_clip's
        ("cls_token", (1, 1, 4)),
        ("pos_embed", (1, 7, 4)),  # timm's
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
    with pytest.raises(ValueError, match=r"2 trainable parameters are in no group: .*one_output\.weight"):
        parameter_groups(net, {**specs, "rest": GroupSpec([net.head, net.gain, net.gate])})
    with pytest.raises(ValueError, match=r"head\.weight is in two parameter groups: 'rest' and 'again'"):
        parameter_groups(net, {**specs, "again": GroupSpec([net.head])})
    with pytest.raises(ValueError, match="not in the module"):
        parameter_groups(net, {**specs, "foreign": GroupSpec([nn.Linear(2, 2)])})


def test_learning_rates_follow_group_factors():
    net = Net()
    optimizer = build_optimizer(parameter_groups(net, net.specs()), lr=0.01)
    for factor in (0.5, 0.25):  # set, not multiplied onto the rate before
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.001 * factor, 0.001 * factor, 0.01 * factor, 0.01 * factor]
        )


def test_optimizer_equals_plain_adamw_with_decay_set_by_hand():
    torch.manual_seed(0)
    ours, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(
        parameter_groups(ours, {"all": GroupSpec([ours], weight_decay=0.1)}), lr=0.01, betas=(0.8, 0.95)
    )
    plain = torch.optim.AdamW(
        [{"params": [reference.weight], "weight_decay": 0.1}, {"params": [reference.bias], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.95),
    )
    for _ in range(5):
        inputs = torch.randn(4, 3)
        for module, stepper in ((ours, optimizer), (reference, plain)):
            stepper.zero_grad()
            module(inputs).square().sum().backward()
            stepper.step()
    torch.testing.assert_close(ours.state_dict(), reference.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_cosine_equals_torch_scheduler(warmup_steps: int):
    total_steps, final = 20, 0.01
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps - 1 - warmup_steps, eta_min=final)
    for step in range(total_steps):
        factor = learning_rate_factor(step, warmup_steps=warmup_steps, total_steps=total_steps, decay="cosine")
        if step < warmup_steps:
            assert factor == pytest.approx((step + 1) / warmup_steps)
        else:
            assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            reference.step()
    assert factor == pytest.approx(final)


def test_step_decay_equals_torch_multistep_and_constant_stays():
    total_steps = 90
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[60, 80], gamma=0.1)
    for step in range(total_steps):
        factor = learning_rate_factor(step, warmup_steps=0, total_steps=total_steps, decay="step")
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        assert learning_rate_factor(step, warmup_steps=0, total_steps=total_steps, decay="constant") == 1.0
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(("step", "warmup_steps"), [(10, 0), (-1, 0), (0, 11)])
def test_impossible_schedules_are_errors(step, warmup_steps):
    with pytest.raises(ValueError, match=r"outside|fit"):
        learning_rate_factor(step, warmup_steps=warmup_steps, total_steps=10, decay="cosine")


def test_average_equals_a_loop_over_scalars():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, (1, 2)), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    ema = Ema(net, decay=0.3)
    expected = {name: tensor.double().clone() for name, tensor in net.state_dict().items()}
    for t in range(6):
        net(torch.randn(2, 2, 3, 5))  # moves the running statistics
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
    with pytest.raises(ValueError, match="one side only: bias"):
        second.load_state_dict({"weight": torch.zeros(2, 3)}, 1)
    with pytest.raises(ValueError, match="decay"):
        Ema(nn.Linear(3, 2), decay=1.0)


def joint_gradient(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipped_steps_are_those_of_torch(max_norm: float):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(2, 2))  # the last has no gradient
    theirs = copy.deepcopy(ours)
    groups = parameter_groups(ours, {"all": GroupSpec([ours])})
    optimizer = build_optimizer(groups, lr=0.1)
    # A step of AdamW hardly depends on the gradient's length; its moments do.
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        x = torch.randn(4, 7)
        for module in (ours, theirs):
            module.zero_grad()
            (10 * module[:2](x)).square().mean().backward()
        before = joint_gradient(list(ours.parameters()))
        norm = gradient_norm(ours.parameters())
        assert norm == pytest.approx(before.norm().item())
        step_if_finite(optimizer, {}, norm, max_norm=max_norm)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
        for name in ("exp_avg", "exp_avg_sq"):
            moments = [found.state[key].get(name) for found, key in ((optimizer, mine), (reference, other))]
            assert (moments[0] is None) == (moments[1] is None)
            if moments[0] is not None:
                torch.testing.assert_close(*moments, rtol=1e-4, atol=1e-9)
    assert gradient_norm(ours[2].parameters()) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad: float):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    plain = copy.deepcopy(module)
    optimizers = [
        build_optimizer(parameter_groups(m, {"all": GroupSpec([m], weight_decay=0.1)}), lr=0.1) for m in (module, plain)
    ]
    x = torch.randn(5, 3)

    def gradient(m: nn.Module, factor: float = 1.0) -> torch.Tensor:
        m.zero_grad()
        loss = factor * m(x).square().mean()
        loss.backward()
        return loss.detach()

    for number in range(4):
        if number == 2:
            step_if_finite(optimizers[0], {"class": gradient(module, bad)}, torch.tensor(1.0), max_norm=1.0)
            gradient(module)
            step_if_finite(optimizers[0], {"class": torch.tensor(1.0)}, torch.tensor(bad), max_norm=1.0)
        step_if_finite(optimizers[0], {"class": gradient(module)}, torch.tensor(1.0), max_norm=1.0)
        gradient(plain)
        optimizers[1].step()
    for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for mine, theirs in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad: float):
    fine, broken = torch.tensor(1.0, requires_grad=True), torch.tensor(bad)
    check_finite({"class": fine}, torch.tensor(2.0), [7])
    with pytest.raises(NonFiniteError, match=rf"step: box = {bad}; images of the batch: 7, shard:9$"):
        check_finite({"class": fine, "box": broken}, torch.tensor(2.0), [7, "shard:9"])
    with pytest.raises(NonFiniteError, match="gradient norm"):
        check_finite({"class": fine}, broken, [])


def test_a_step_raises_the_versions_of_what_it_changes():
    net = nn.Linear(3, 2)
    optimizer = build_optimizer(parameter_groups(net, {"all": GroupSpec([net], weight_decay=0.1)}), lr=0.01)
    net(torch.ones(1, 3)).sum().backward()
    before = [parameter._version for parameter in net.parameters()]
    step_if_finite(optimizer, {"loss": torch.ones(())}, gradient_norm(net.parameters()), max_norm=1.0)
    assert all(parameter._version > version for parameter, version in zip(net.parameters(), before, strict=True))


def test_a_run_of_one_step_has_the_whole_rate():
    assert learning_rate_factor(0, warmup_steps=0, total_steps=1, decay="cosine") == 1
    assert learning_rate_factor(3, warmup_steps=3, total_steps=4, decay="cosine") == 1


def test_an_average_of_other_weights_is_refused():
    average = Ema(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match="more"):
        average.load_state_dict({**average.state_dict(), "more": torch.zeros(1)}, 0)
