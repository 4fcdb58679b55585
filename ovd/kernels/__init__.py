"""Triton kernels for GPUs; each has an eager form beside the code that calls it, which CPUs and the compiler take."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def applies_to(x: Tensor) -> bool:
    """Whether a tensor is for the kernels: on a CUDA device, with Triton there, and not while torch.compile traces."""
    return x.is_cuda and _has_triton() and not torch.compiler.is_compiling()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
