"""Shortened lists in messages."""

import pytest

from ovd.join_first import join_first


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        ([], {}, ""),
        (["a", "b"], {"limit": 2}, "a, b"),
        (["a", "b", "c"], {"limit": 2}, "a, b and 1 more"),
        (["a", "b", "c"], {"limit": 1, "separator": "; "}, "a; and 2 more"),
        (range(12), {}, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"),
        (range(2010), {"limit": 1}, "0 and 2,009 more"),
    ],
)
def test_the_first_are_named_and_the_others_counted(items, options, expected):
    assert join_first(items, **options) == expected
