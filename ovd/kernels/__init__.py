"""Triton kernels for GPUs; each has an eager form beside the code that calls it, which CPUs and the compiler take."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

ALIGNMENT = 64
"""Matrix products whose numbers of rows are no multiple of it may take several times as long."""


def applies_to(x: Tensor) -> bool:
    """Whether a tensor is for the kernels: on a CUDA device, with Triton there, and not while torch.compile traces."""
    return x.is_cuda and _has_triton() and not torch.compiler.is_compiling()


def applies_to_map(x: Tensor) -> bool:
    """The same of a map, whose channels have to come last."""
    return applies_to(x) and x.is_contiguous(memory_format=torch.channels_last)


def aligned(num_rows: int) -> int:
    """The number of rows to pad this many to."""
    return -(-num_rows // ALIGNMENT) * ALIGNMENT


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
