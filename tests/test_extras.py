"""Packages of extras are imported when needed; if one is missing, the error names what to install."""

import sys

import pytest

from ovd.extras import optional
from ovd.onnx.session import open_session


def test_a_module_that_is_there():
    assert optional("json.decoder", "none") is sys.modules["json.decoder"]


def test_a_package_that_is_missing():
    with pytest.raises(ValueError, match=r"needs the package no_such_package: pip install 'ovd\[serve\]'"):
        optional("no_such_package.part", "serve")


def test_a_model_in_onnx_form_needs_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs the package onnxruntime: pip install 'ovd\[onnx\]'"):
        open_session(tmp_path / "model.onnx")


def test_a_package_that_lacks_something_itself(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        optional("half_installed", "serve")
