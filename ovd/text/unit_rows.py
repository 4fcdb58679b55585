"""Check of text embeddings that a user gives to a detector. Does not import torch."""

from typing import Any

import numpy as np

from ovd.shapes import Float32

TOLERANCE = 1e-2
"""Largest deviation of a row's length from 1 that is taken for the rounding of half precision."""


def as_unit_rows(rows: Any, dim: int) -> Float32[np.ndarray, "C D"]:
    """Return a float32 copy of the rows, normalized to length 1.

    Args:
        rows: an array or nested lists of shape (C, D).
        dim: D, the dimension of the detector's text embeddings.

    Raises:
        ValueError: there is no row, the shape is not (C, D), or a length is not about 1.
    """
    checked = np.array(rows, dtype=np.float32)
    if checked.ndim != 2 or len(checked) == 0 or checked.shape[1] != dim:
        raise ValueError(f"text rows have the shape {checked.shape}; the detector needs (C, {dim}), C at least 1")
    lengths = np.linalg.norm(checked, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= TOLERANCE))  # NaN is wrong, too
    if len(wrong):
        raise ValueError(f"text row {wrong[0]} has the norm {lengths[wrong[0]]:.3g}; divide each row by its norm")
    return checked / lengths[:, None]
