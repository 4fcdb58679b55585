"""What a training changes."""

from dataclasses import dataclass

import torch
from torch import nn

from ovd.engine.ema import Ema
from ovd.model.detector import Detector


@dataclass
class TrainState:
    """All that a training changes and checkpoints store."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    """The averaged weights; None if the run keeps no average."""
    step: int = 0
    """Optimizer steps done."""


@dataclass
class DetectorState(TrainState):
    """That of a detector's training, which keeps an average."""

    module: Detector
    ema: Ema
