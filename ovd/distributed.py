"""Communication between the processes that train one detector together, as torchrun starts them.

Every function also works for a single process without torchrun, so that callers need no special case.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Kind = TypeVar("Kind")

TIMEOUT = timedelta(minutes=10)
"""Maximum time that a rank waits for the others. A dead rank is noticed at once, a hanging one after this time."""
BARRIER_TIMEOUT = timedelta(hours=12)
"""Maximum time that ranks wait for work of the main process alone (`main_first`, `barrier`)."""

_patient_group: dist.ProcessGroup | None = None
"""Process group of all ranks with `BARRIER_TIMEOUT` as its timeout; None outside `process_group`."""


@contextmanager
def process_group() -> Iterator[None]:
    """Initialize torch's process group if torchrun started several ranks, while the context is open."""
    global _patient_group
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=TIMEOUT)
    group = dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    _patient_group = group
    try:
        yield
    finally:
        _patient_group = None
        dist.destroy_process_group()


def rank() -> int:
    """Return the rank of this process, 0 to world size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device_of_rank(name: str) -> torch.device:
    """Return the device for a configured name; `auto` is this process's GPU if there is one, else the CPU.

    Raises:
        ValueError: the name is not `auto`, `cpu`, `cuda` or `cuda:N`, or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name} does not exist (GPUs that torch finds: {torch.cuda.device_count()}); use auto, cpu or "
            "another cuda:N"
        )
    return device


def pins_memory(device: torch.device) -> bool:
    """Check whether images for a device should be loaded into page-locked memory: only if it is the current GPU.

    torch allocates page-locked memory through the current GPU, so images for another GPU would take some memory of this
    one.
    """
    return device.type == "cuda" and device.index in (None, torch.cuda.current_device())


def is_main() -> bool:
    """Check whether this is the main process (rank 0), which writes and prints."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks."""
    return _reduce(tensor, dist.ReduceOp.SUM)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of a tensor over all ranks."""
    return _reduce(tensor, dist.ReduceOp.MAX)


def on_any_rank(flag: bool) -> bool:
    """Return whether `flag` is true on at least one rank."""
    return bool(max_over_ranks(torch.tensor(int(flag))))


def min_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise minimum of a tensor over all ranks."""
    return _reduce(tensor, dist.ReduceOp.MIN)


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if not dist.is_initialized():
        return tensor
    # `process_group` reduces tensors on either device; a group created by other code may have only nccl.
    reduced = tensor.to("cuda" if dist.get_backend() == "nccl" else tensor.device, copy=True)
    dist.all_reduce(reduced, operation)
    return reduced.to(tensor.device)


def union_over_ranks(ids: Int[Tensor, " K"]) -> Int[Tensor, " L"]:
    """Return the distinct ids of all ranks, in ascending order."""
    return torch.cat([part.to(ids.device) for part in all_gather(ids)]).unique()


def all_gather(value: Kind) -> list[Kind]:
    """Gather a picklable value from every rank, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Kind) -> Kind:
    """Return the main process's picklable value on every rank; the ranks wait for it up to `BARRIER_TIMEOUT`."""
    barrier()
    return all_gather(value)[0]


def gather(value: Kind) -> list[Kind]:
    """Gather a picklable value from every rank on the main process, in rank order; the others get an empty list."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size() if is_main() else []
    dist.gather_object(value, values if is_main() else None)
    return values


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Raise an error that occurs in this context on every rank, so that no rank waits for one that has stopped.

    Raises:
        ValueError, RuntimeError: another rank failed, with bad input or with an error at run time.
    """
    failure: Exception | None = None
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        failure = error
    if on_any_rank(failure is not None):
        reports = all_gather(None if failure is None else (isinstance(failure, ValueError), str(failure)))
        if failure is not None:
            raise failure
        failed_rank, report = next((number, report) for number, report in enumerate(reports) if report is not None)
        is_bad_input, message = report
        raise (ValueError if is_bad_input else RuntimeError)(f"rank {failed_rank}: {message}")


def raise_together(items: Iterator[Kind]) -> Iterator[Kind]:
    """Yield items, whose number is the same on every rank; an error of one rank is raised on all ranks."""
    end = object()
    while True:
        with raise_on_all_ranks():
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # `end` was returned above


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module in DistributedDataParallel, without broadcasting buffers; return it unchanged for one process."""
    if world_size() == 1:
        return module
    # torch 2.14 warns about the old name.
    known, new_name = signature(DistributedDataParallel).parameters, "forward_sync_buffers"
    options: dict[str, Any] = {new_name if new_name in known else "broadcast_buffers": False}
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None, **options)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the code inside this context on the main process first, then on the others, which find its files on disk.

    The others wait up to `BARRIER_TIMEOUT`. They also run the code after an error of the main process, so that bad
    input raises the same error there.
    """
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def barrier() -> None:
    """Wait until every rank has reached this call, for up to `BARRIER_TIMEOUT`."""
    if dist.is_initialized():
        dist.barrier(_patient_group)
