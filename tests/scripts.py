"""Scripts outside the package: imported as modules, and run as a user runs a tool."""

import contextlib
import importlib.util
import io
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]


def module_of(path: str) -> ModuleType:
    """Import a script as a module of its own, by its path in the repository."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    assert spec is not None, path
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess:
    """Run a script of tools/ in this process, which saves seconds of imports."""
    script, *options = map(str, arguments)
    out, error, code = io.StringIO(), io.StringIO(), 0
    threads = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.setattr(sys, "argv", [script, *options])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            torch.set_num_threads(threads)
    assert code == expect, out.getvalue() + error.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())
