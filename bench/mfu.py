"""Measure the share of a machine's peak that a training step reaches, and on a GPU where its time goes.

    python bench/mfu.py                                                              # 2 images of 320 px
    python bench/mfu.py --device cuda [--config configs/lvis_base_convnext_b.yaml]   # 16 images of 800 px

A step's operations are counted (ovd/cost.py), without its losses. The peaks of a matrix product and of a convolution,
in the precision of the step, and the rate of a copy are measured in the same run. Ratios are to the time that the
step's operations would take at a peak, and to the time in which the GPU computes anything. The forward pass that is
timed alone launches kernels one by one; that of the step is a CUDA graph on a GPU.
"""

import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from inputs import BenchDetector, build_bench_detector, build_training_step, parse_with_sizes
from measured import measure_medians, measure_seconds, milliseconds, save
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ovd.cost import count_cost
from ovd.engine.detector_groups import build_groups
from ovd.engine.ema import Ema
from ovd.engine.optim import build_optimizer, gradient_norm, step_if_finite
from ovd.precision import describe_machine

NUM_CLASSES = 1203
PROFILED_STEPS = 3
LISTED = 25
"""Number of kernels listed, the most expensive ones."""


def main() -> None:
    arguments = parse_with_sizes(__doc__)
    device = arguments.device
    bench = build_bench_detector(arguments.config, device)
    batch = bench.batch(arguments.batch_size, arguments.size, NUM_CLASSES)
    step = build_training_step(bench, batch, NUM_CLASSES)
    step()

    def forward() -> object:
        with bench.compute.autocast():
            return bench.detector(batch.images)

    raw = measure_seconds({"step": step, "forward": forward, "optimizer": optimizer_step(bench)}, device)
    seconds = {name: statistics.median(values) for name, values in raw.items()}
    peaks = measured_peaks(device, torch.bfloat16 if bench.compute.low_precision else torch.float32)
    flops = arguments.batch_size * count_cost(bench.config, arguments.size, arguments.size).training_flops
    result = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()} | {"classes": NUM_CLASSES},
        "ratio": {
            f"time at the peak of {form}": round(seconds["step"] * peaks[f"{form}_tflop_per_s"] * 1e12 / flops, 3)
            for form in ("convolutions", "products")
        },
        "milliseconds": milliseconds(raw),
        "backward_and_losses_ms": round(1000 * (2 * seconds["step"] - sum(seconds.values())), 1),
        "images_per_s": round(arguments.batch_size / seconds["step"], 1),
        "tflop_per_s": round(flops / seconds["step"] / 1e12, 3),
        "peaks": peaks,
    }
    if device.type == "cuda":
        result["gpu"] = profiled(step)
        result["ratio"]["time in which it is busy"] = round(1000 * seconds["step"] / result["gpu"]["busy_ms"], 3)
    for name, value in result.items():
        print(f"{name}: {value}")
    save(f"mfu_{arguments.config.stem}", result, device)


def optimizer_step(bench: BenchDetector) -> Callable[[], object]:
    """Return a function that clips constant gradients, takes a step of AdamW with `lr=0` and updates the average."""
    parameters = [parameter for parameter in bench.detector.parameters() if parameter.requires_grad]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    optimizer = build_optimizer(build_groups(bench.detector, bench.config.train), lr=0.0)
    average = Ema(bench.detector, bench.config.train.ema_decay)

    def work() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        step_if_finite(optimizer, {}, gradient_norm(parameters), max_norm=bench.config.train.clip_norm)
        optimizer.zero_grad()
        average.update(bench.detector)

    return work


def measured_peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure the rates of a square matrix product, a 3 x 3 convolution of 256 channels, and a copy, read and write."""
    is_gpu = device.type == "cuda"
    side, maps, numbers = (8192, 16, 2**28) if is_gpu else (2048, 2, 2**25)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x, weight = (
        torch.randn(*shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((maps, 256, 100, 100), (256, 256, 3, 3))
    )
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    seconds = measure_medians(
        {
            "products": lambda: left @ right,
            "convolutions": partial(F.conv2d, x, weight, padding=1),
            "copy": lambda: target.copy_(source),
        },
        device,
    )
    return {
        "products_tflop_per_s": round(2 * side**3 / seconds["products"] / 1e12, 3),
        "convolutions_tflop_per_s": round(2 * x.numel() * weight[0].numel() / seconds["convolutions"] / 1e12, 3),
        "copy_gb_per_s": round(2 * source.nbytes / seconds["copy"] / 1e9, 1),
    }


def profiled(step: Callable[[], object]) -> dict[str, object]:
    """Profile the kernels of a step, the host's waits in it, and the time in which any kernel runs."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    spans = ((event.time_range.start, event.time_range.end) for event in events if not event.is_user_annotation)
    summed = profiler.key_averages()
    kernels = [event for event in summed if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    waits = sum(event.count for event in summed if event.key == "cudaStreamSynchronize")
    return {
        "busy_ms": round(covered(spans) / 1000 / PROFILED_STEPS, 2),
        "kernels_per_step": round(sum(event.count for event in kernels) / PROFILED_STEPS),
        "host_synchronizations_per_step": round(waits / PROFILED_STEPS, 1),
        "most_expensive": [
            {
                "ms_per_step": round(event.self_device_time_total / 1000 / PROFILED_STEPS, 2),
                "per_step": round(event.count / PROFILED_STEPS, 1),
                "kernel": event.key[:100],
            }
            for event in kernels[:LISTED]
        ],
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    main()
