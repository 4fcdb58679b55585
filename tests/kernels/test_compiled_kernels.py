"""Triton compiles every kernel for a GPU, even without one."""

import json
from pathlib import Path

import pytest
from python_process import output_of

import ovd.kernels

pytest.importorskip("triton")

HERE = Path(__file__).parent


@pytest.mark.slow
def test_every_kernel_compiles_in_every_form_that_its_tests_launch(tmp_path):
    launches = tmp_path / "launches.jsonl"
    tests = [str(HERE / f"test_{name}.py") for name in ("kernels", "convnext")]
    recording = ("-m", "pytest", "-q", "-p", "recorded_launches", "-p", "no:cacheprovider", *tests)
    output_of(*recording, also=HERE, LAUNCHES=str(launches))
    recorded = {json.loads(line)["module"] for line in launches.read_text().splitlines()}
    modules = {f"ovd.kernels.{path.stem}" for path in Path(ovd.kernels.__file__).parent.glob("[!_]*.py")}
    assert recorded == modules
    compiled = output_of(str(HERE / "recorded_launches.py"), str(launches))
    assert len(compiled.splitlines()) == len(launches.read_text().splitlines())
