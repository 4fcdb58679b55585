"""A user's own text rows: cast to float32, and refused if a detector would give nonsense for them."""

import numpy as np
import pytest

from ovd.text.unit_rows import as_unit_rows

ROWS = np.eye(3, 4)


@pytest.mark.parametrize("given", [ROWS, ROWS.astype(np.float16), ROWS.tolist()])
def test_rows_of_every_form_are_taken(given) -> None:
    found = as_unit_rows(given, 4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ROWS[0], r"shape \(4,\); the detector needs \(C, 4\)"),
        (ROWS[:0], r"shape \(0, 4\); the detector needs \(C, 4\), C at least 1"),
        (ROWS[:, :3], r"shape \(3, 3\)"),
        (7 * ROWS, "row 0 has the norm 7"),
        (ROWS * [[1], [np.nan], [1]], "row 1 has the norm nan"),
        (ROWS * [[1], [1], [0]], "row 2 has the norm 0"),
    ],
)
def test_other_rows_are_refused(given, words) -> None:
    with pytest.raises(ValueError, match=words):
        as_unit_rows(given, 4)
