"""Shared functions of the benchmarks: times of forms that take turns, memory of a process, and files of results."""

import datetime
import gc
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

FOLDER = Path(__file__).parent / "results"
ROUNDS = 9
PRELOADED = ("ovd.jobs.train", "torchvision")
"""Modules that are imported before processes are started, since that takes seconds."""


def measure_medians(forms: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Return the median of `measure_seconds` for each form."""
    return {name: statistics.median(values) for name, values in measure_seconds(forms, device).items()}


def measure_seconds(
    forms: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Return the seconds of each form in every round; forms take turns, after a round that is not counted.

    Their order changes in every round, since a form that fills the caches makes the next one slower.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    order, names = random.Random(0), list(forms)
    for number in range(rounds + 1):
        for name in order.sample(names, len(names)):
            start = time.perf_counter()
            forms[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Return raw times in rounded milliseconds, as results have them."""
    return {name: [round(1000 * value, 2) for value in values] for name, values in seconds.items()}


def time_ratio(seconds: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """Return the median time of a form over that of its peer."""
    return round(statistics.median(seconds[ours]) / statistics.median(seconds[peer]), 3)


def results_file(name: str, device: str) -> Path:
    """Return the path of a script's results."""
    return FOLDER / f"{name}{'' if device == 'cpu' else f'_{device}'}.json"


def save(name: str, results: Mapping[str, Any], device: torch.device) -> None:
    """Write the results of a script with the date, in place of earlier ones.

    Args:
        device: device of the results, which is part of the file's name.
    """
    FOLDER.mkdir(exist_ok=True)
    content = {"date": datetime.date.today().isoformat(), **results}
    results_file(name, device.type).write_text(json.dumps(content, indent=2) + "\n")


def run_in_subprocess(function: Callable[..., Result], *arguments: Any, device: torch.device) -> Result:
    """Call a function of a script in a process of its own; on a GPU, whose memory torch counts, in this one."""
    if device.type == "cuda":
        return function(*arguments)
    context = multiprocessing.get_context("forkserver")  # imports once for all processes
    context.set_forkserver_preload(list(PRELOADED))
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def measure_added_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory in bytes that work adds to this process, or on a GPU to torch's memory.

    On a CPU, the process must not have held more memory before.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    before = resident_bytes()
    work()
    return resident_bytes(peak=True) - before


def resident_bytes(*, peak: bool = False) -> int:
    """Return the memory in bytes that this process holds, or the most that it has held, as Linux reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))
