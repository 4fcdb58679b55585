"""Reading of weights files without running any code in them, and loading into a module that they fit exactly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ovd.join_first import join_first

_NUM_LISTED = 20


def load_into(module: nn.Module, path: Path) -> None:
    """Load a weights file into a module that it fits exactly.

    Raises:
        ValueError: as `load_weights` and `check_fit`.
    """
    tensors = load_weights(path)
    check_fit(module, tensors, source=path)
    module.load_state_dict(tensors, strict=True)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from .safetensors, or from .pt, .pth or .bin without running any code in them.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: the file does not exist, has an unknown suffix, is damaged, or contains more than named tensors.
    """
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise ValueError(f"{path}: the name of a weights file must end in .safetensors, .pt, .pth or .bin")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes can raise anything inside torch's unpickler
        reason = error if isinstance(error, OSError) else type(error).__name__  # torch's advice is to trust the file
        raise ValueError(
            f"{path} cannot be loaded: it is damaged, or contains more than tensors ({reason}); copy the file again, "
            "or save only the module's state_dict"
        ) from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} contains a {type(weights).__name__} instead of a dict of tensors; save a state_dict")
    others = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        named = join_first(others, _NUM_LISTED)
        raise ValueError(f"{path} contains more than a dict of tensors ({named}); save only the module's state_dict")
    return weights


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str = "weights") -> None:
    """Check that tensors fit a module's state_dict in names and shapes.

    Raises:
        ValueError: lists up to 20 missing, unexpected or misshaped keys.
    """
    expected = module.state_dict()
    problems = [f"missing {name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"unexpected {name} {tuple(tensor.shape)}")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}")
    if problems:
        named = join_first(problems, _NUM_LISTED, separator="; ")
        raise ValueError(f"{source} does not match {type(module).__name__}: {named}")
