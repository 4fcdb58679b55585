"""Numbers of things in messages."""

import pytest

from ovd.format_count import format_count


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2, ("box", "boxes"), "2 boxes"),
        (1, ("box", "boxes"), "1 box"),
        (1200, ("crowd region",), "1,200 crowd regions"),
    ],
)
def test_one_is_not_many(count, words, expected):
    assert format_count(count, *words) == expected
