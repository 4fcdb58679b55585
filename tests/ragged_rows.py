"""Rows of different lengths, as pseudo-labels hold them."""

import numpy as np

from ovd.data.index import Ragged


def ragged(rows: list[list], dtype: type, *shape: int) -> Ragged:
    """Make rows whose values each have the shape `shape`."""
    values: np.ndarray = np.array([value for row in rows for value in row], dtype).reshape(-1, *shape)
    return Ragged(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))
