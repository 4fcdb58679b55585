"""Names as a text tower reads them: equal names, blank names, and invalid ones."""

import pytest

from ovd.data.vocabulary import _normalized
from ovd.text.clean import clean
from ovd.text.names import as_query_tuple, check_unique_names, isin_names, name_key

ALIKE = [
    ("Umbrella", "umbrella"),
    ("traffic_light", "Traffic light"),
    ("salt/pepper shaker", "salt or pepper shaker"),
    ("men's shoe", "men\u2019s shoe"),
    ("caf\u00e9", "cafe\u0301"),
    ("bow_(weapon)", "bow (weapon)"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_are_read_alike_are_one_name(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)
    with pytest.raises(ValueError, match="is given twice"):
        check_unique_names([one, None, other])
    assert isin_names([one, "another"], [other]) == [True, False]


@pytest.mark.parametrize(("one", "other"), ALIKE[:3] + ALIKE[5:])
def test_the_check_for_leaks_sees_them_too(one: str, other: str) -> None:
    assert _normalized(one) == _normalized(other)


def test_what_is_not_asked_for_by_a_name_may_come_twice() -> None:
    check_unique_names(["anchor", None, None])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "at least one"),
        (None, "class names must be strings, not NoneType"),
        (3, "class names must be strings, not int: 3"),
        (b"anchor", "class names must be strings, not bytes"),
        (["anchor", "_"], r"these positions are blank: \[1\] \(counted from 0\)"),
        ([1, 2], "class names must be strings, not int: 1"),
        ([b""], "class names must be strings, not bytes"),
    ],
)
def test_what_is_no_list_of_names_is_refused(given, words) -> None:
    with pytest.raises(ValueError, match=words):
        as_query_tuple(given, (str,))


def test_one_name_may_stand_alone() -> None:
    assert as_query_tuple("a b", (str,)) == ("a b",)


def test_a_dictionary_is_no_list_of_names():
    with pytest.raises(ValueError, match="class names must be strings, not dict"):
        as_query_tuple({"cat": 1}, (str,))


def test_control_characters_are_not_read():
    assert clean("\ufeffcat\x00") == "cat"
