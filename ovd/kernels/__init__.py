"""Triton kernels for GPUs; each has an eager form beside the code that calls it, for CPUs and torch.compile."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

ALIGNMENT = 64
"""Multiple that rows of matrix products are padded to; products of other sizes may take several times as long."""


MIN_CAPABILITY = (7, 0)
"""Lowest compute capability of a GPU that torch compiles Triton's kernels for."""


def supports(x: Tensor) -> bool:
    """Return whether a tensor is for the kernels: on the current GPU, if Triton compiles for it, outside torch.compile.

    Triton launches its kernels on the current device, which cannot read the memory of another one.
    """
    if not x.is_cuda or torch.compiler.is_compiling():
        return False
    return x.device.index == torch.cuda.current_device() and _has_triton(x.device)


def supports_map(x: Tensor) -> bool:
    """Return whether a map is for the kernels, for which it must also be channels last."""
    return supports(x) and x.is_contiguous(memory_format=torch.channels_last)


def round_up(num_rows: int) -> int:
    """Return a number of rows, rounded up to a multiple of `ALIGNMENT`."""
    return -(-num_rows // ALIGNMENT) * ALIGNMENT


@cache
def _has_triton(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
