"""Triton compiles every kernel for a GPU, whether one is there or not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ovd.kernels

pytest.importorskip("triton")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def output_of(*command: str, **environment: str) -> str:
    paths = os.pathsep.join(map(str, (HERE, ROOT, ROOT / "tests")))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "PYTEST"))}
    ended = subprocess.run(
        [sys.executable, *command],
        env={**inherited, "PYTHONPATH": paths, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_every_kernel_compiles_in_every_form_that_its_tests_launch(tmp_path):
    launches = tmp_path / "launches.jsonl"
    tests = [str(HERE / f"test_{name}.py") for name in ("kernels", "convnext")]
    output_of("-m", "pytest", "-q", "-p", "recorded_launches", "-p", "no:cacheprovider", *tests, LAUNCHES=str(launches))
    recorded = {json.loads(line)["module"] for line in launches.read_text().splitlines()}
    modules = {f"ovd.kernels.{path.stem}" for path in Path(ovd.kernels.__file__).parent.glob("[!_]*.py")}
    assert recorded == modules
    compiled = output_of(str(HERE / "recorded_launches.py"), str(launches))
    assert len(compiled.splitlines()) == len(launches.read_text().splitlines())
