"""Text rows of one's own, checked before a detector takes them. Imports no torch."""

from typing import Any

import numpy as np

from ovd.shapes import Float32

TOLERANCE = 1e-2
"""Difference of a row's length from 1 that half precision may leave."""


def as_unit_rows(rows: Any, dim: int) -> Float32[np.ndarray, "C D"]:
    """A copy of the rows in float32, of length 1.

    Args:
        rows: an array or lists.
        dim: D, of the detector.

    Raises:
        ValueError: there is none, or they have another width, or lengths that are not about 1.
    """
    checked = np.array(rows, dtype=np.float32)
    if checked.ndim != 2 or len(checked) == 0 or checked.shape[1] != dim:
        raise ValueError(f"text rows have the shape {checked.shape}; the detector takes (C, {dim})")
    lengths = np.linalg.norm(checked, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= TOLERANCE))  # NaN is wrong, too
    if len(wrong):
        raise ValueError(f"text row {wrong[0]} has the length {lengths[wrong[0]]:.3g}; divide each by its length")
    return checked / lengths[:, None]
