"""Choice of bf16 or float32 by the hardware, and the properties of the machine that bit-identical results depend on."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.utils.deterministic
from torch import nn

from ovd.choices import Precision
from ovd.format_count import format_count

Module = TypeVar("Module", bound=nn.Module)

BF16_INSTRUCTIONS = ("AMX", "AVX512-BF16")
"""Names of the CPU instructions for bf16, as in `instruction_set`."""


def fast_low_precision(device: torch.device) -> bool:
    """Check whether a device computes bfloat16 in hardware: CUDA since Ampere, and CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(_cpu_bf16_instructions())


def use_low_precision(precision: Precision, device: torch.device) -> bool:
    """Check whether to use bf16 on a device; `auto` means bf16 if the device computes it in hardware."""
    return fast_low_precision(device) if precision == "auto" else precision == "bf16"


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Return a context with bf16 autocast if `enabled`, else without autocast.

    bf16 has float32's exponent range, so losses need no scaling. The meta device has no autocast.
    """
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a GPU is the current device.

    Triton launches its kernels on the current device, whatever the device of their tensors.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_default_dtype() -> None:
    """Check that torch's default dtype, in which modules are created, is float32.

    Raises:
        ValueError: the program has set another default dtype.
    """
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise ValueError(
            f"models are built in float32, but torch's default dtype is {dtype}; "
            "call torch.set_default_dtype(torch.float32) before loading them"
        )


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which products with a tensor are computed: autocast's if enabled, else the tensor's."""
    device = x.device.type
    has_autocast = not x.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if has_autocast else x.dtype


@dataclass(frozen=True)
class Compute:
    """Device and precision of a computation."""

    device: torch.device
    low_precision: bool
    """Whether to use bf16 autocast."""

    @classmethod
    def configured(cls, precision: Precision, device: torch.device) -> "Compute":
        """Create a `Compute` for a configured precision, see `use_low_precision`."""
        return cls(device, use_low_precision(precision, device))

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of trained modules and their images: channels last for bf16, whose kernels are faster so."""
        return torch.channels_last if self.low_precision else torch.contiguous_format

    @property
    def frozen_memory_format(self) -> torch.memory_format:
        """Memory format of frozen modules and their images: channels last, also in float32 on a CPU with oneDNN.

        oneDNN's kernels are faster with it, except those that compute gradients.
        """
        is_faster = self.device.type == "cpu" and torch.backends.mkldnn.is_available()
        return torch.channels_last if is_faster else self.memory_format

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context to call modules in."""
        return autocast(self.device, self.low_precision)

    def place(self, module: Module) -> Module:
        """Move a module to be trained to the device and into its memory format, before its optimizer is restored."""
        return module.to(self.device).to(memory_format=self.memory_format)

    def freeze(self, module: Module) -> Module:
        """Freeze a module: move it to the device and into its memory format, in eval mode and without gradients."""
        return module.requires_grad_(False).to(self.device).to(memory_format=self.frozen_memory_format).eval()


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Make results on a GPU bit-identical from run to run within this context; results on a CPU always are.

    Enter it before anything is computed on a GPU.
    """
    if not enabled:
        yield
        return
    # torch reads it at the first product in the process, deterministic or not.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = torch.utils.deterministic
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code reads uninitialized memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=only_warned)
        settings.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def describe_machine(device: torch.device) -> str:
    """Describe the machine in one line for logs and results: device, instruction set, threads, torch version.

    Bit-identical results depend on all of these.

    Args:
        device: device of the run.
    """
    threads = format_count(torch.get_num_threads(), "thread")
    parts = [f"CPU {cpu_name()}", instruction_set(), threads, f"torch {torch.__version__}"]
    if device.type == "cuda":
        parts.insert(0, f"GPU {torch.cuda.get_device_name(device)}")
    # These variables limit the instruction set that kernels are picked for.
    lowered = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    parts += [f"{name}={os.environ[name]}" for name in lowered if name in os.environ]
    return ", ".join(parts)


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def instruction_set() -> str:
    """Return the instruction set that torch picks its CPU kernels for, with the instructions for bf16."""
    return " + ".join([torch.backends.cpu.get_cpu_capability(), *_cpu_bf16_instructions()])


def _cpu_bf16_instructions() -> list[str]:
    """List the bf16 instructions of this CPU that oneDNN, which computes convolutions, may use."""
    # torch names these probes privately up to 2.14, and not on every platform.
    probes = zip(BF16_INSTRUCTIONS, ("_is_amx_tile_supported", "_is_avx512_bf16_supported"), strict=True)
    found = [name for name, probe in probes if getattr(torch.cpu, probe, lambda: False)()]
    return [name for name in found if name in _allowed_bf16_instructions()]


def _allowed_bf16_instructions() -> tuple[str, ...]:
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    if limit in ("ALL", "DEFAULT") or "AMX" in limit:
        return BF16_INSTRUCTIONS
    return BF16_INSTRUCTIONS[1:] if limit.startswith(("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10")) else ()


def cpu_name() -> str:
    """Return the model name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
