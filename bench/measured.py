"""What the benchmarks share: where their figures go, and how much memory a process holds."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def save(name: str, figures: Any) -> None:
    """Write `bench/results/NAME.json`, in place of an earlier one."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")


def resident_bytes() -> int:
    """VmRSS of this process, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
