"""Faults and their text form in files."""

import pytest

from ovd.fault import Fault


def test_a_fault_is_read_back_from_its_text():
    fault = Fault("F9", "a b.png: cannot be decoded")
    assert str(fault) == f"{fault}" == "F9 a b.png: cannot be decoded"
    assert Fault.read(str(fault)) == fault
    assert str(fault.at("00000.tar")) == "F9 00000.tar: a b.png: cannot be decoded"
    code, words = fault
    assert (code, words) == (fault.code, fault.message)


@pytest.mark.parametrize("text", ["", "F9", " no code"])
def test_text_without_code_and_words_is_refused(text):
    with pytest.raises(ValueError, match="is not the code of a fault and words"):
        Fault.read(text)
