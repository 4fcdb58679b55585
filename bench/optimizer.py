"""Measure clipping, AdamW and the average of the weights against torch's defaults, and against a copy of the bytes.

    python bench/optimizer.py [--device cuda]

32 million parameters in matrices and biases. The defaults are torch's clipping and AdamW without `fused`, with the same
average. The floor is the time of a copy with as many bytes as one step must read and write: the gradient for its norm,
then weight, gradient, both moments and average, all of which but the gradient are written again. If weights or averages
differ from the defaults', no ratio is given.
"""

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from measured import measure_seconds, milliseconds, save, time_ratio
from torch import nn

from ovd.engine.ema import Ema
from ovd.engine.optim import build_optimizer, gradient_norm, step_if_finite
from ovd.engine.parameter_groups import GroupSpec, parameter_groups
from ovd.precision import describe_machine

MATRICES, SIDE = 32, 1024
"""Number and side of the square matrices, each with a bias."""
NUMBERS = 10
"""How many numbers are read and written per parameter."""
RATE, DECAY, MAX_NORM, WEIGHT_DECAY = 1e-4, 0.9998, 1.0, 0.05
STEPS_COMPARED = 3
LARGEST_DIFFERENCE = 1e-5


class Learner:
    """Parameters with constant gradients, and their average."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        for parameter, other in zip(self.module.parameters(), module.parameters(), strict=True):
            assert other.grad is not None
            parameter.grad = other.grad.clone()
        self.average = Ema(self.module, DECAY)


def ours(learner: Learner) -> Callable[[], object]:
    groups = parameter_groups(learner.module, {"all": GroupSpec([learner.module], weight_decay=WEIGHT_DECAY)})
    optimizer = build_optimizer(groups, lr=RATE)

    def step() -> None:
        step_if_finite(optimizer, {}, gradient_norm(learner.module.parameters()), max_norm=MAX_NORM)
        learner.average.update(learner.module)

    return step


def defaults(learner: Learner) -> Callable[[], object]:
    matrices = [parameter for parameter in learner.module.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in learner.module.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)

    def step() -> None:
        nn.utils.clip_grad_norm_(learner.module.parameters(), MAX_NORM)
        optimizer.step()
        learner.average.update(learner.module)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    device = parser.parse_args().device
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(MATRICES))).to(device)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    learners = {"ours": Learner(module), "defaults": Learner(module)}
    forms = {"ours": ours(learners["ours"]), "defaults": defaults(learners["defaults"])}
    for step in forms.values():
        for _ in range(STEPS_COMPARED):
            step()
    check(learners)
    source = torch.randn(NUMBERS // 2 * sum(parameter.numel() for parameter in module.parameters()), device=device)
    target = torch.empty_like(source)
    seconds = measure_seconds({**forms, "floor": lambda: target.copy_(source)}, device)
    result = {
        "machine": describe_machine(device),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "ratio": {f"time of the {peer}": time_ratio(seconds, "ours", peer) for peer in ("defaults", "floor")},
        "milliseconds": milliseconds(seconds),
        "copy_gb_per_s": round(2 * source.nbytes / statistics.median(seconds["floor"]) / 1e9, 1),
    }
    print(result)
    save("optimizer", result, device)


def check(learners: dict[str, Learner]) -> None:
    """Stop unless both learners have the same weights and averages."""
    mine, theirs = (learner.module.state_dict() for learner in learners.values())
    my_average, their_average = (learner.average.state_dict() for learner in learners.values())
    for name in mine:
        for value, other in ((mine[name], theirs[name]), (my_average[name], their_average[name])):
            if (difference := float((value - other).abs().max())) > LARGEST_DIFFERENCE:
                raise SystemExit(f"no ratio: {name} differs by {difference}")


if __name__ == "__main__":
    main()
