"""The config of a short fine-tuning on any data, which the tests of fine-tuning and of experts start from."""

from pathlib import Path
from typing import Any

from cores import THREADS
from merged import merged

from ovd.config.training import TrainConfig
from ovd.config_files import parse_config


def fine_tuning_config(output: Path, source: dict[str, str], **changes: Any) -> TrainConfig:
    """Make a config of two steps of two images each, with `changes` merged into its sections."""
    values: dict[str, Any] = {
        "output": str(output),
        "bank": {"cache": str(output.parent / "banks"), "templates": "none"},
        "data": {"source": {"kind": "files", **source}, "size": 64, "workers": 0},
        "train": {
            "steps": 2,
            "batch_size": 2,
            "sampled_classes": 10,
            "warmup_steps": 1,
            "precision": "float32",
            "threads": THREADS,
        },
        "detector": {"channels": 32, "num_convs": 1},
        "eval": {"candidates": 200, "max_detections": 50},
    }
    return parse_config(merged(values, changes), TrainConfig, "test")
