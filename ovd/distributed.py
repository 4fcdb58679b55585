"""Several processes that train one detector together, as torchrun starts them, or a single one without torchrun.

Every function also works for a single process, so that callers need no special case.
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
"""Maximum time that a rank waits for the others. A rank that dies is noticed at once, one that hangs after this."""
PATIENCE = timedelta(hours=12)
"""Maximum time that ranks wait for work of the main process alone (`main_first`, `barrier`)."""

_patient: dist.ProcessGroup | None = None
"""The group of all ranks that has this timeout; None outside `process_group`."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other ranks that torchrun started, for the duration of the block."""
    global _patient
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=TIMEOUT)
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # of which every rank is a member
    _patient = group
    try:
        yield
    finally:
        _patient = None
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 to world size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number among those of its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device_of_rank(name: str) -> torch.device:
    """The device for a configured name; `auto` is this process's GPU if there is one, else the CPU.

    Raises:
        ValueError: the name is none, or of a GPU that is not there.
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
        raise ValueError(f"device {name}: torch finds {torch.cuda.device_count()} GPUs here; auto takes what there is")
    return device


def pins_memory(device: torch.device) -> bool:
    """Whether images for a device are best loaded into page-locked memory: those for this process's current GPU.

    torch locks memory by way of the current GPU, so for another it would take some of this one's.
    """
    return device.type == "cuda" and device.index in (None, torch.cuda.current_device())


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor."""
    return _reduce(tensor, dist.ReduceOp.SUM)


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise maximum of every rank's tensor."""
    return _reduce(tensor, dist.ReduceOp.MAX)


def on_any_rank(is_so: bool) -> bool:
    """Whether something is so on at least one rank."""
    return bool(largest_over_ranks(torch.tensor(int(is_so))))


def smallest_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise minimum of every rank's tensor."""
    return _reduce(tensor, dist.ReduceOp.MIN)


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if not dist.is_initialized():
        return tensor
    # `process_group` takes tensors of either device; a group made by other code may have nccl alone.
    reduced = tensor.to("cuda" if dist.get_backend() == "nccl" else tensor.device, copy=True)
    dist.all_reduce(reduced, operation)
    return reduced.to(tensor.device)


def union_over_ranks(ids: Int[Tensor, " K"]) -> Int[Tensor, " L"]:
    """All ranks' ids, each once, ascending."""
    return torch.cat([part.to(ids.device) for part in all_gather(ids)]).unique()


def all_gather(value: Kind) -> list[Kind]:
    """Every rank's value, in rank order; it must be picklable."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Kind) -> Kind:
    """The main process's value on every rank; all wait for it, for hours if need be. It must be picklable."""
    barrier()
    return all_gather(value)[0]


def gather(value: Kind) -> list[Kind]:
    """Every rank's value, in rank order, on the main process; nothing on the others. It must be picklable."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size() if is_main() else []
    dist.gather_object(value, values if is_main() else None)
    return values


@contextmanager
def failing_together() -> Iterator[None]:
    """Run the block on every rank; an error of one is raised on all, so that none waits for one that has stopped.

    Raises:
        ValueError, RuntimeError: on the other ranks, as on the one that failed: bad input, or a fault at run time.
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


def together(items: Iterator[Kind]) -> Iterator[Kind]:
    """Yield the items, of which every rank has as many; see `failing_together` for an error of one of them."""
    end = object()
    while True:
        with failing_together():
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # the end is none


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module so that gradients are averaged over ranks; for a single process, it is returned as it is."""
    if world_size() == 1:
        return module
    # torch 2.14 warns of the old name.
    known, new_name = signature(DistributedDataParallel).parameters, "forward_sync_buffers"
    options: dict[str, Any] = {new_name if new_name in known else "broadcast_buffers": False}
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None, **options)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block on the main process, then on the others, which find its files on disk; it may take hours.

    They also run it after an error of the main process, and meet a bad input as it did.
    """
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def barrier() -> None:
    """Wait until every rank has reached this call, for hours if the main process has work to do before."""
    if dist.is_initialized():
        dist.barrier(_patient)
