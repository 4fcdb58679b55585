"""What the benchmarks share: times of forms that take turns, memory of a process, and where the figures go."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
ROUNDS = 9


def medians(forms: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median seconds of each form over `ROUNDS`, in which they take turns, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(ROUNDS + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def save(name: str, figures: Any) -> None:
    """Write `bench/results/NAME.json`, in place of an earlier one."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")


def resident_bytes(*, peak: bool = False) -> int:
    """Memory that this process holds, or the most it has held, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))
