"""Optimizer steps, learning rate schedule and clipping against torch's own."""

import copy
import math

import pytest
import torch
from torch import nn

from ovd.engine.optim import (
    FINAL_FACTOR,
    NonFiniteError,
    build_optimizer,
    check_finite,
    gradient_norm,
    learning_rate_factor,
    set_learning_rate,
    step_if_finite,
)
from ovd.engine.parameter_groups import GroupSpec, parameter_groups


def test_learning_rates_follow_group_factors():
    net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    specs = {"backbone": GroupSpec([net[0]], lr_factor=0.1), "rest": GroupSpec([net[1]])}
    optimizer = build_optimizer(parameter_groups(net, specs), lr=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.001, 0.01, 0.01])
    for factor in (0.5, 0.25):  # a factor replaces the one before
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


def joint_gradient(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipped_steps_are_those_of_torch(max_norm: float):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(2, 2))  # the last layer has no gradient
    theirs = copy.deepcopy(ours)
    groups = parameter_groups(ours, {"all": GroupSpec([ours])})
    optimizer = build_optimizer(groups, lr=0.1)
    # A step of AdamW hardly depends on the norm of the gradient, but its moments do.
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
    net = nn.Linear(3, 2)
    optimizer = build_optimizer(parameter_groups(net, {"all": GroupSpec([net])}), lr=0.01)

    def checked(losses: dict[str, torch.Tensor], norm: torch.Tensor, ids: list[int | str]) -> dict[str, float]:
        return check_finite(losses, step_if_finite(optimizer, losses, norm, max_norm=1.0), ids)

    fine, broken = torch.tensor(1.5, requires_grad=True), torch.tensor(bad)
    assert checked({"class": fine, "box": torch.tensor(0.25)}, torch.tensor(2.0), [7]) == {"class": 1.5, "box": 0.25}
    with pytest.raises(NonFiniteError, match=rf"step: box = {bad}; images of the batch: 7, shard:9$"):
        checked({"class": fine, "box": broken}, torch.tensor(2.0), [7, "shard:9"])
    with pytest.raises(NonFiniteError, match="gradient norm"):
        checked({"class": fine}, broken, [])


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


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_cosine_of_two_steps_ends_at_its_end(warmup_steps):
    factors = [
        learning_rate_factor(
            warmup_steps + step, warmup_steps=warmup_steps, total_steps=warmup_steps + 2, decay="cosine"
        )
        for step in range(2)
    ]
    assert factors == pytest.approx([1, FINAL_FACTOR])


def test_a_warm_up_may_last_the_whole_run():
    assert learning_rate_factor(3, warmup_steps=4, total_steps=4, decay="cosine") == 1


def test_the_numbers_of_a_step_do_not_keep_its_graph():
    net = nn.Linear(3, 2)
    optimizer = build_optimizer(parameter_groups(net, {"all": GroupSpec([net])}), lr=0.01)
    loss = net(torch.ones(1, 3)).sum()
    loss.backward()
    assert not step_if_finite(optimizer, {"loss": loss}, gradient_norm(net.parameters()), max_norm=1.0).requires_grad
