"""Devices by name, and synchronization of ranks."""

import os
import subprocess
import sys

import pytest
import torch
from free_port import free_port

from ovd.distributed import device_of_rank, pins_memory


def test_a_device_that_is_not_there_is_named(monkeypatch):
    assert device_of_rank("cpu") == torch.device("cpu")
    for name in ("cdua", "cuda:x", "", "mps", "meta"):
        with pytest.raises(ValueError, match=f"unknown device '{name}'; use auto, cpu, cuda or cuda:N$"):
            device_of_rank(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of_rank("cuda") == torch.device("cuda")
    assert device_of_rank("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"device cuda:1 does not exist \(GPUs that torch finds: 1\)"):
        device_of_rank("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device cuda does not exist \(GPUs that torch finds: 0\); use auto"):
        device_of_rank("cuda")


def test_memory_is_pinned_for_the_current_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    devices = ("cpu", "cuda", "cuda:0", "cuda:1")
    assert [pins_memory(torch.device(name)) for name in devices] == [False, True, False, True]


WAITING = """
import time
from datetime import timedelta
from ovd import distributed
distributed.TIMEOUT = timedelta(seconds=6)
with distributed.process_group():
    if distributed.is_main():
        time.sleep(9)
    assert distributed.broadcast(distributed.rank()) == 0
    assert distributed.all_gather(distributed.rank()) == [0, 1]
"""


@pytest.mark.slow
def test_ranks_wait_longer_for_work_of_the_main_process_than_for_each_other():
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen([sys.executable, "-c", WAITING], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
