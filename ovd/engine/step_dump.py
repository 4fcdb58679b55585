"""Dumps of failed training steps, complete enough to replay them: weights, images, targets and texts."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd.distributed import rank
from ovd.engine.step_texts import StepTexts
from ovd.fault import Fault
from ovd.files import atomic_write
from ovd.structures import Batch, Targets

_FAULT_FIELDS = ("skipped", "repaired")
"""Fields of a batch that are stored as text, since a `weights_only` load refuses objects of their class."""


@dataclass(frozen=True)
class StepDump:
    """The inputs and the losses of a training step."""

    step: int
    weights: Mapping[str, Tensor]
    """The detector's state_dict before the step."""
    batch: Batch
    texts: StepTexts
    losses: Mapping[str, float]

    def write(self, run_dir: Path) -> Path:
        """Write the dump into the run folder, one file per rank.

        Raises:
            OSError: it cannot be written.
        """
        path = run_dir / f"failed-step-{self.step:06d}.rank{rank()}.pt"
        batch = self.batch
        batch_fields = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "targets"}
        faults = {name: tuple(map(str, getattr(batch, name))) for name in _FAULT_FIELDS}
        content = {
            "step": self.step,
            "weights": self.weights,
            "batch": batch_fields | faults,
            "targets": [dict(vars(target)) for target in batch.targets],
            "texts": dict(vars(self.texts)),
            "losses": dict(self.losses),
        }
        try:
            with atomic_write(path, "wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch raises it on a full disk, with a message that does not mention the disk
            raise OSError(f"{path} cannot be written; the disk may be full") from error
        return path

    @classmethod
    def read(cls, path: Path) -> "StepDump":
        """Read a dump onto the CPU, without running any code in the file.

        Raises:
            ValueError: the file is not a dump.
        """
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            targets = tuple(Targets(**target) for target in content["targets"])
            faults = {name: tuple(map(Fault.read, content["batch"][name])) for name in _FAULT_FIELDS}
            batch = Batch(**(content["batch"] | faults), targets=targets)
            texts = StepTexts(**content["texts"])
            return cls(content["step"], content["weights"], batch, texts, content["losses"])
        except Exception as error:  # torch raises many types of errors for files that are not dumps
            reason = error if isinstance(error, OSError) else type(error).__name__  # torch's advice is to trust it
            raise ValueError(f"{path} is not the dump of a training step: {reason}") from error
