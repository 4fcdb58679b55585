"""Conversion of an optimizer's state to named tensors and a JSON-able rest, and back."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ovd.engine.weights_file import load_weights


def flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state into tensors, named `<parameter index>.<name>`, and everything else."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else others)[f"{index}.{name}"] = value
    return tensors, {"state": others, "param_groups": state["param_groups"]}


def unflatten(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the output of `flatten` from a safetensors file that has the rest as JSON in its header.

    Raises:
        ValueError: the parameter groups or the shape of a tensor differ.
    """
    rest = json.loads(read_metadata(path)["rest"])
    here = [(group.get("name"), len(group["params"])) for group in optimizer.param_groups]
    there = [(group.get("name"), len(group["params"])) for group in rest["param_groups"]]
    if here != there:
        raise ValueError(
            f"{path}: the parameter groups (name, number of parameters) are {there}, but those of the run are {here}; "
            "train the same parts, or start from the weights alone (init_state=averaged)"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (rest["state"] | load_weights(path)).items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.ndim == 0:
            value = value.clone()  # loaded tensors may be views of the file
        elif isinstance(value, Tensor):
            if value.shape != parameter.shape:
                raise ValueError(
                    f"{path}: {key} has the shape {tuple(value.shape)}, but its parameter {tuple(parameter.shape)}; "
                    "build the module and its parameter groups as when this was saved"
                )
            # Fused AdamW reads raw memory on the CPU: a state in another memory format than its parameter (channels
            # last instead of contiguous) would give wrong steps without an error.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    # The run's own groups are kept: their rates and weight decay may differ from the checkpoint's.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()
