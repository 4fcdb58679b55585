"""Measure a training step, from images to new weights and their average, against the same of torchvision's FCOS.

    python bench/train_step.py                     # CLIP's ResNet-50, 2 images of 320 px
    python bench/train_step.py --device cuda       # 16 images of 800 px

Random images with three boxes each, 91 and 1,203 classes, random weights. Both clip gradients, take a step of fused
AdamW and update an average of the weights. torchvision's is timed as shipped, in float32 (on a CPU only), and tuned,
with bf16 autocast and channels last where ours has them. All forms take turns. Peak memory, of ours and tuned, is what
model and steps add to a process of their own on a CPU, or to torch's memory on a GPU.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from inputs import build_bench_detector, build_training_step, parse_with_sizes
from measured import measure_added_bytes, measure_seconds, milliseconds, run_in_subprocess, save, time_ratio
from peer import torchvision_fcos, torchvision_step

from ovd.precision import Compute, describe_machine

CLASSES = (91, 1203)
ROUNDS = 3
STEPS_FOR_MEMORY = 2
"""Number of steps; the second has the optimizer's state as well."""


def make_step(
    form: str, num_classes: int, config: Path, batch_size: int, size: int, device: torch.device
) -> Callable[[], object]:
    """Return a function that takes a training step of a form."""
    bench = build_bench_detector(config, device)
    batch = bench.batch(batch_size, size, num_classes)
    if form == "ours":
        return build_training_step(bench, batch, num_classes)
    tuned = form == "tuned" and bench.compute.low_precision
    del bench
    return torchvision_step(
        torchvision_fcos(num_classes, size, device, Compute(device, tuned).memory_format), batch, tuned=tuned
    )


def peak_bytes(form: str, *settings) -> int:
    """Measure the memory in bytes that a form adds to this process (see `make_step`)."""

    def work() -> None:
        step = make_step(form, *settings)
        for _ in range(STEPS_FOR_MEMORY):
            step()

    return measure_added_bytes(work, settings[-1])


def main() -> None:
    arguments = parse_with_sizes(__doc__)
    device = arguments.device
    compared = ("ours", "tuned")
    forms = (*compared, "shipped") if device.type == "cpu" else compared
    rows, ratio = [], {}
    for num_classes in CLASSES:
        settings = (num_classes, arguments.config, arguments.batch_size, arguments.size, device)
        peak = {form: run_in_subprocess(peak_bytes, form, *settings, device=device) for form in compared}
        seconds = measure_seconds({form: make_step(form, *settings) for form in forms}, device, rounds=ROUNDS)
        for peer in forms[1:]:
            ratio[f"time of {peer}, {num_classes:,} classes"] = time_ratio(seconds, "ours", peer)
        ratio[f"memory of tuned, {num_classes:,} classes"] = round(peak["ours"] / peak["tuned"], 3)
        rows.append(
            {
                "classes": num_classes,
                "milliseconds": milliseconds(seconds),
                "peak_MB": {form: round(value / 2**20) for form, value in peak.items()},
            }
        )
        print(rows[-1], flush=True)
    print(ratio)
    settings_used = {name: str(value) for name, value in vars(arguments).items()}
    result = {"machine": describe_machine(device), "settings": settings_used, "ratio": ratio, "rows": rows}
    save("train_step", result, device)


if __name__ == "__main__":
    main()
