"""Python in a separate process, for code that changes torch or Triton for the rest of a process."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
OTHERS = ("PYTEST", "STAND_IN", "TRITON")
"""Prefixes of environment variables that the process does not inherit."""


def output_of(*arguments: str, also: Path = TESTS, **environment: str) -> str:
    """Run Python with the repository, tests/ and the folder `also` on its path, and return what it prints; it must not
    fail."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, also)))
    ended = subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": paths, **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
