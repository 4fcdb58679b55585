"""Which tensors the kernels compute, and which are left to torch's own operations."""

from dataclasses import dataclass

import pytest
import torch

from ovd import kernels

pytest.importorskip("triton")


@dataclass
class TensorOf:
    """What is read of a tensor."""

    device: torch.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def supports(device: str) -> bool:
    return kernels.supports(TensorOf(torch.device(device)))  # type: ignore[arg-type]


def test_only_tensors_of_the_current_gpu_are_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches its kernels on the current GPU, so tensors of another one are left to torch."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    for current in (2, 3):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        supported = [device for device in ("cpu", "meta", "cuda:1", "cuda:2", "cuda:3") if supports(device)]
        assert supported == [f"cuda:{current}"]


@pytest.mark.parametrize(("capability", "expected"), [((6, 1), False), ((7, 0), True), ((7, 5), True), ((12, 0), True)])
def test_a_gpu_that_is_too_old_for_triton_is_left_to_torch(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 40 + 5 * capability[0] + capability[1]  # another for each, since the answer for a device is kept
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert supports(f"cuda:{number}") == expected
