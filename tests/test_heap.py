"""Freed memory is reused instead of requested from the system again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from ovd.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    parts = [b"1" * size for size in (3_000_000, 40_000_000, 70_000_000)]

if sys.argv[1] == "keep":
    keep_freed_memory()
use()
before = faults()
for _ in range(5):
    use()
print((faults() - before) * resource.getpagesize() / 5 / 113_000_000)
"""


def share_asked_for_again(mode: str, **environment: str) -> float:
    """Return the share of each round's memory that the system had to provide again."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, env={**kept, **environment}, check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    assert share_asked_for_again("plain") > 0.5
    assert share_asked_for_again("keep") < 0.05
    # A user's own limits stay in force: here, every block of a megabyte or more is returned to the system.
    assert share_asked_for_again("keep", MALLOC_MMAP_THRESHOLD_="1000000") > 0.5
