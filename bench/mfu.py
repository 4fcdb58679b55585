"""The share of a machine's peak that a training step reaches, and on a GPU what its time goes to.

    python bench/mfu.py                                                        # 2 images of 320 px
    python bench/mfu.py --device cuda [--config configs/lvis_base_convnext_b.yaml]   # 16 images of 800 px

A step's operations are counted (ovd/cost.py), without the losses. The peaks of a matrix product and of a convolution,
in the precision of the step, and of a copy are measured in the same run.
"""

from collections.abc import Callable

import torch
from fresh import argument_parser, fresh_detector, own_step
from measured import medians, save
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ovd.cost import count_cost
from ovd.precision import describe_machine

CPU_IMAGES, GPU_IMAGES = (2, 320), (16, 800)
CLASSES, PROFILED_STEPS, LISTED = 1203, 3, 25


def main() -> None:
    parser = argument_parser(__doc__, config="configs/lvis_base_rn50.yaml", batch_size=None, size=None)
    arguments = parser.parse_args()
    device = arguments.device
    images, side = GPU_IMAGES if device.type == "cuda" else CPU_IMAGES
    batch_size, size = arguments.batch_size or images, arguments.size or side
    fresh = fresh_detector(arguments.config, device)
    step = own_step(fresh, fresh.batch(batch_size, size, CLASSES), CLASSES)
    peaks = measured_peaks(device, torch.bfloat16 if fresh.low_precision else torch.float32)
    seconds = medians({"step": step}, device)["step"]
    tflops = batch_size * count_cost(fresh.config, size, size).training_flops / seconds / 1e12
    result = {
        "machine": describe_machine(device),
        "settings": {"config": str(arguments.config), "batch_size": batch_size, "size": size, "classes": CLASSES},
        "step_ms": round(1000 * seconds, 1),
        "images_per_s": round(batch_size / seconds, 1),
        "tflop_per_s": round(tflops, 3),
        "peaks": peaks,
        "share_of_matmul_peak": round(tflops / peaks["matmul_tflop_per_s"], 3),
        "share_of_conv_peak": round(tflops / peaks["conv_tflop_per_s"], 3),
        **(profiled(step, seconds) if device.type == "cuda" else {}),
    }
    for name, value in result.items():
        print(f"{name}: {value}" if name != "kernels" else "\n".join(value))
    save(f"mfu_{arguments.config.stem}", result)


def measured_peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Of a square matrix product, of a 3 x 3 convolution of 256 channels, and of a copy, counting both ways."""
    is_gpu = device.type == "cuda"
    side, maps = (8192, 16) if is_gpu else (2048, 2)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(maps, 256, 100, 100, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    source = torch.empty(2**28 if is_gpu else 2**26, device=device)
    target = torch.empty_like(source)
    forms: dict[str, Callable[[], object]] = {
        "matmul": lambda: a @ b, "conv": lambda: F.conv2d(x, weight, padding=1), "copy": lambda: target.copy_(source),
    }  # fmt: skip
    seconds = medians(forms, device)
    return {
        "matmul_tflop_per_s": round(2 * side**3 / seconds["matmul"] / 1e12, 2),
        "conv_tflop_per_s": round(2 * x.numel() * weight[0].numel() / seconds["conv"] / 1e12, 2),
        "copy_gb_per_s": round(2 * source.nbytes / seconds["copy"] / 1e9, 1),
    }


def profiled(step: Callable[[], object], seconds: float) -> dict[str, object]:
    """Kernels, and waits of the host, of a step.

    Args:
        seconds: of a step that is not profiled.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = [
        event for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.key.startswith("Optimizer.step")
    ]  # fmt: skip
    kernels.sort(key=lambda event: -event.self_device_time_total)
    busy_ms = sum(event.self_device_time_total for event in kernels) / 1000 / PROFILED_STEPS
    waits = sum(event.count for event in events if event.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize"))
    return {
        "busy_ms": round(busy_ms, 1),
        "busy_share": round(busy_ms / 1000 / seconds, 3),
        "launches": round(sum(event.count for event in kernels) / PROFILED_STEPS),
        "waits_of_the_host": round(waits / PROFILED_STEPS),
        "kernels": [
            f"{event.self_device_time_total / 1000 / PROFILED_STEPS:8.2f} ms {event.count / PROFILED_STEPS:6.0f} x "
            f"{event.key[:100]}"
            for event in kernels[:LISTED]
        ],
    }


if __name__ == "__main__":
    main()
