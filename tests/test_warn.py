"""Warnings have a fixed form, and leave standard output to data."""

from ovd.warn import warn


def test_a_warning_goes_to_standard_error_with_its_code_if_it_has_one(capsys):
    warn("a.jpg is dark")
    warn("a.jpg is missing", code="F8")
    assert capsys.readouterr() == ("", "warning: a.jpg is dark\nwarning[F8]: a.jpg is missing\n")
