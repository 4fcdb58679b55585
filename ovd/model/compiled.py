"""Optional torch.compile: seconds to minutes of compilation at the start, faster steps afterwards."""

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")


@cache
def compiled(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function compiled for tensors of any size, once per process."""
    return torch.compile(function, dynamic=True)
