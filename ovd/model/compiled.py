"""torch.compile, for those who ask for it: seconds to minutes at the start, faster steps from then on."""

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")


@cache
def compiled(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function compiled for tensors of any size, once for the process."""
    return torch.compile(function, dynamic=True)
