"""Readers of a run folder: the records of its log, the tensors of its steps, and the bytes of its files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]
WEIGHTS = ("model", "ema", "optimizer")
"""Names, without suffix, of the tensor files in the checkpoint of every training step."""


def records_of(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of one kind from metrics.jsonl."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def losses_of(run: Path) -> list[dict[str, float]]:
    return [record["losses"] for record in records_of(run, "train")]


def tensors_of(step: Path) -> dict[str, Tensors]:
    """Load the tensor files in the folder of a step, by file name without suffix."""
    return {path.stem: load_file(path) for path in step.glob("*.safetensors")}


def assert_same_tensors(one: Tensors, other: Tensors) -> None:
    """Check that both hold the same tensors, bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


def assert_same_step(one: Path, other: Path, *, files: tuple[str, ...] = WEIGHTS) -> None:
    """Check that two step folders hold exactly these tensor files, equal bit for bit."""
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys() == set(files)
    for name in files:
        assert_same_tensors(first[name], second[name])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
