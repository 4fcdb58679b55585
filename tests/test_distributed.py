"""Devices by name."""

import pytest
import torch

from ovd.distributed import device_of_rank


def test_a_device_that_is_not_there_is_named(monkeypatch):
    assert device_of_rank("cpu") == torch.device("cpu")
    for name in ("cdua", "cuda:x", ""):
        with pytest.raises(ValueError, match=f"'{name}' is no device; auto, cpu, cuda and cuda:1 are"):
            device_of_rank(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of_rank("cuda") == torch.device("cuda")
    assert device_of_rank("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="device cuda:1: torch finds 1 GPUs here"):
        device_of_rank("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device cuda: torch finds 0 GPUs here; auto takes what there is"):
        device_of_rank("cuda")
