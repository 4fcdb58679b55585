"""Training runs in their own processes, as `ovd train` starts them: killed, stopped and made to fail from outside.

The processes are forked from a server that has imported everything, so that a start does not take seconds.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from free_port import free_port

import ovd.commands.train
import ovd.engine.log
import ovd.jobs.train
from ovd.cli import run_tool
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config

_PR_SET_PDEATHSIG = 1
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["ovd.jobs.train", "ovd.jobs.preflight", "ovd.jobs.replay_step", "pytest"]
)  # modules of tests/ are not on the server's path


def train(config: TrainConfig, **options: Any) -> None:
    """Train without an evaluation; this is the default job of a process."""
    ovd.jobs.train.train_from_config(config, evaluate=False, **options)


def _run(
    values: dict[str, Any], options: dict[str, Any], variables: dict[str, str], output: str, fault: Any, job: Any
) -> None:
    """Run the job in a new process, with its output in a file."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # die with the server, which ends with the tests
    os.environ.update(variables)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    ovd.engine.log.draw_training_curves = lambda records, image: None  # drawing takes longer than a few steps
    if fault is not None:
        fault()
    config = parse_config(values, TrainConfig, "test")
    run_tool(lambda: job(config, **options))


class Ranks:
    """The processes of one training."""

    def __init__(self, processes: list[Any], outputs: list[Path]):
        self.processes = processes
        self._outputs = outputs

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def send(self, number: int, rank: int = 0, *, to_group: bool = False) -> None:
        """Send a signal to the process of a rank, or to its process group, in which its loader's workers start."""
        with suppress(ProcessLookupError):
            (os.killpg if to_group else os.kill)(self.processes[rank].pid, number)

    def exit_codes(self, timeout_s: float = 900) -> list[int | None]:
        """Wait for all processes and return their exit codes: None if one has not ended in time, negative if it was
        killed."""
        end = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def output(self, rank: int = 0) -> str:
        """Return what a rank has printed so far."""
        return self._outputs[rank].read_text() if self._outputs[rank].exists() else ""


@contextmanager
def training(
    config: TrainConfig,
    *,
    ranks: int = 1,
    fault: Callable[[], None] | None = None,
    job: Callable[..., object] = train,
    **options: Any,
) -> Iterator[Ranks]:
    """Start the processes of a training run and end them with the block.

    Args:
        fault: A function of a module, called in every process before the training.
        job: A function of a module, called with the config.
        options: Keyword arguments for `job`.
    """
    variables: list[dict[str, str]] = [{}]
    if ranks > 1:
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        variables = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    outputs = [config.output.with_name(f"{config.output.name}.rank{rank}.txt") for rank in range(ranks)]
    values = config.model_dump(mode="json")
    processes = [
        _SERVER.Process(target=_run, args=(values, options, environment, str(output), fault, job))
        for environment, output in zip(variables, outputs, strict=True)
    ]
    try:
        for process in processes:
            process.start()
        yield Ranks(processes, outputs)
    finally:
        for process in processes:
            process.kill()
            process.join()
