"""The config of a short training run of a small detector, which tests of several parts start from."""

from pathlib import Path
from typing import Any

import torch
from cores import THREADS
from merged import merged

from ovd.config.training import TrainConfig
from ovd.config_files import parse_config


def source_of(world: Path, *, validated: bool = True) -> dict[str, str]:
    """Return `data.source` of a world in LVIS format, with or without its validation set."""
    source = {"kind": "files", "format": "lvis"}
    for part in ("train", "val") if validated else ("train",):
        source[f"{part}_annotations"] = str(world / "annotations" / f"lvis_{part}.json")
        source[f"{part}_images"] = str(world / "images")
    return source


def small_config(output: Path, world: Path, **changes: Any) -> TrainConfig:
    """Make a config of six steps of two images each, with `changes` merged into its sections."""
    values: dict[str, Any] = {
        "output": str(output),
        "bank": {"cache": str(world / "banks")},
        "detector": {"channels": 32, "num_convs": 1},
        "data": {"source": source_of(world), "size": 96, "workers": 0},
        "train": {
            "steps": 6,
            "batch_size": 2,
            "sampled_classes": 10,
            "warmup_steps": 2,
            "save_every": 2,
            "threads": THREADS,
            "deterministic": torch.cuda.is_available(),
        },
    }
    return parse_config(merged(values, changes), TrainConfig, "test")
