"""Headers of safetensors files whose bytes depend on their content alone and whose tensors are written piece by piece.

The safetensors package writes a file's metadata in random order, so that equal contents give different bytes, and needs
a whole tensor in memory.
"""

import json
import math
from collections.abc import Mapping

import numpy as np

_NAMES = {np.dtype("<f2"): "F16", np.dtype("<f4"): "F32", np.dtype("<i4"): "I32", np.dtype("<i8"): "I64"}


def file_header(shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the first tensor; the tensors follow in the order of `shapes`, without gaps.

    Args:
        shapes: dtype and shape by tensor name.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded
