"""The state of a training, which checkpoints store."""

from dataclasses import dataclass

import torch
from torch import nn

from ovd.engine.ema import Ema
from ovd.model.detector import Detector


@dataclass
class TrainState:
    """Everything that a training changes and a checkpoint stores."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    """The averaged weights; None if the run keeps no average."""
    step: int = 0
    """Number of optimizer steps done."""


@dataclass
class DetectorState(TrainState):
    """State of a detector's training, which always keeps an average."""

    module: Detector
    ema: Ema
