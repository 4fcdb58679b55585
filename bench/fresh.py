"""What the benchmarks run: a fresh detector of a config, random images with boxes, and random unit text rows."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.build.detector import build_detector, configured_clip
from ovd.config import TrainConfig, load_config
from ovd.model.detector import Detector
from ovd.precision import memory_format, use_low_precision
from ovd.structures import Batch, Targets

BOXES = 3
"""Boxes of each image."""


def argument_parser(description: str | None, *, config: str, batch_size: int) -> argparse.ArgumentParser:
    """The options that name a detector, its images and its device, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(config), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="default: %(default)s")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    return parser


@dataclass(frozen=True)
class Fresh:
    """A fresh detector on its device, and where random images and texts for it come from."""

    config: TrainConfig
    detector: Detector
    dim: int
    """Of the text space."""
    low_precision: bool
    generator: torch.Generator
    device: torch.device

    def batch(self, batch_size: int, size: int, num_classes: int) -> Batch:
        """Square images of noise."""
        corners = torch.rand(batch_size, BOXES, 2, generator=self.generator) * size * 0.6
        sides = (0.1 + 0.3 * torch.rand(batch_size, BOXES, 2, generator=self.generator)) * size
        batch = Batch.without_pairs(
            images=torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, generator=self.generator),
            sizes=torch.full((batch_size, 2), size),
            targets=tuple(
                replace(
                    Targets.empty(),
                    boxes=torch.cat([corner, corner + side], dim=1),
                    classes=torch.randint(num_classes, (BOXES,), generator=self.generator),
                )
                for corner, side in zip(corners, sides, strict=True)
            ),
            image_ids=tuple(range(batch_size)),
        )
        return batch.to(self.device)

    def text(self, count: int) -> Tensor:
        """Unit rows, (count, dim)."""
        return F.normalize(torch.randn(count, self.dim, generator=self.generator), dim=1).to(self.device)


def fresh_detector(path: Path, device: torch.device) -> Fresh:
    """Build a config's detector, with random weights unless its CLIP is the tiny one; on a CPU with two threads."""
    torch.set_num_threads(2)
    is_tiny = load_config(path, [], TrainConfig).clip.name == "tiny"
    overrides = [f"train.device={device}", *([] if is_tiny else ["clip.weights=random"])]
    config = load_config(path, overrides, TrainConfig)
    low_precision = use_low_precision("auto", device)
    torch.manual_seed(0)
    clip = configured_clip(config.clip)
    detector = build_detector(config, clip).to(device).to(memory_format=memory_format(low_precision)).eval()
    return Fresh(config, detector, clip.dim, low_precision, torch.Generator().manual_seed(0), device)
