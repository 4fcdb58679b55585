"""Dumps of failed training steps, complete enough to replay them: weights, images, targets and texts."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd.distributed import rank
from ovd.engine.step_texts import StepTexts
from ovd.fault import Fault
from ovd.files import whole_file
from ovd.structures import Batch, Targets

_FAULTS = ("skipped", "repaired")
"""Fields of a batch that are text in the file, of which no class is read."""


def write_step(
    run_dir: Path, step: int, *, detector: nn.Module, batch: Batch, texts: StepTexts, losses: Mapping[str, Tensor]
) -> Path:
    """Write the step's dump into the run folder, one file per rank; the weights are those before the step."""
    path = run_dir / f"failed-step-{step:06d}.rank{rank()}.pt"
    faults = {name: tuple(map(str, getattr(batch, name))) for name in _FAULTS}
    of_batch = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "targets"}
    content = {
        "step": step,
        "weights": detector.state_dict(),
        "batch": of_batch | faults,
        "targets": [dict(vars(target)) for target in batch.targets],
        "texts": dict(vars(texts)),
        "losses": {name: loss.item() for name, loss in losses.items()},
    }
    with whole_file(path, "wb") as file:
        torch.save(content, file)
    return path


def read_step(path: Path) -> tuple[int, dict[str, Tensor], Batch, StepTexts, dict[str, float]]:
    """Step number, weights, batch, texts and losses of a dump, on the CPU. No code in the file is run.

    Raises:
        ValueError: the file is not a dump.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        targets = tuple(Targets(**target) for target in content["targets"])
        faults = {name: tuple(map(Fault.read, content["batch"][name])) for name in _FAULTS}
        batch = Batch(**(content["batch"] | faults), targets=targets)
        return content["step"], content["weights"], batch, StepTexts(**content["texts"]), content["losses"]
    except Exception as error:  # torch raises many types of errors for a file of another kind
        raise ValueError(f"{path} is not the dump of a training step: {error}") from error
