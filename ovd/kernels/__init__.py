"""Triton kernels for GPUs; each has an eager form beside the code that calls it, for CPUs and torch.compile."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

ALIGNMENT = 64
"""Multiple that rows of matrix products are padded to; products of other sizes may take several times as long."""


def supports(x: Tensor) -> bool:
    """Return whether a tensor is for the kernels: on a CUDA device, with Triton installed, outside torch.compile."""
    return x.is_cuda and _has_triton() and not torch.compiler.is_compiling()


def supports_map(x: Tensor) -> bool:
    """Return whether a map is for the kernels, for which it must also be channels last."""
    return supports(x) and x.is_contiguous(memory_format=torch.channels_last)


def round_up(num_rows: int) -> int:
    """Return a number of rows, rounded up to a multiple of `ALIGNMENT`."""
    return -(-num_rows // ALIGNMENT) * ALIGNMENT


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
