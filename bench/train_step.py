"""A training step, from images to new weights and their average, against the same of torchvision's FCOS.

    python bench/train_step.py                     # CLIP's ResNet-50, 2 images of 320 px
    python bench/train_step.py --device cuda       # 16 images of 800 px

Random images with three boxes each, 91 and 1,203 classes, random weights. Both clip gradients, take a step of fused
AdamW and update an average of the weights. torchvision's is timed as it comes, in float32 (not on a GPU), and tuned:
bf16 autocast and channels last where ours uses them. Peak memory is of a process for each form.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import torch
from fresh import Fresh, argument_parser, fresh_detector, own_step
from measured import medians, resident_bytes, save
from peer import torchvision_fcos, torchvision_step

from ovd.precision import describe_machine, use_low_precision

CLASSES = (91, 1203)
FORMS = ("ours", "tuned", "shipped")
CPU_IMAGES, GPU_IMAGES = (2, 320), (16, 800)
"""Images of a step, and their side."""


def make_step(form: str, classes: int, fresh: Fresh, batch_size: int, size: int) -> Callable[[], float]:
    """A function that takes a step of a form, and returns its loss."""
    batch = fresh.batch(batch_size, size, classes)
    if form == "ours":
        return own_step(fresh, batch, classes)
    tuned = form == "tuned" and use_low_precision("auto", fresh.device)
    return torchvision_step(torchvision_fcos(classes, size, fresh.device, tuned=tuned), batch, tuned=tuned)


def peak_bytes(step: Callable[[], float], device: torch.device) -> int:
    """Memory of the process at the peak of three steps; on a GPU, that which torch allocated."""
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes(peak=True)


def main() -> None:
    parser = argument_parser(__doc__, config="configs/lvis_base_rn50.yaml", batch_size=None, size=None)
    parser.add_argument("--memory-of", nargs=2, metavar=("CLASSES", "FORM"), help="only print this form's peak bytes")
    arguments = parser.parse_args()
    device = arguments.device
    images, side = GPU_IMAGES if device.type == "cuda" else CPU_IMAGES
    batch_size, size = arguments.batch_size or images, arguments.size or side

    def step_of(form: str, classes: int) -> Callable[[], float]:
        return make_step(form, classes, fresh_detector(arguments.config, device), batch_size, size)

    if arguments.memory_of:
        classes, form = arguments.memory_of
        print(peak_bytes(step_of(form, int(classes)), device))
        return

    @cache
    def memory(form: str, classes: int) -> int:
        command = [sys.executable, __file__, "--config", str(arguments.config), "--device", str(device)]
        command += ["--batch-size", str(batch_size), "--size", str(size), "--memory-of", str(classes), form]
        return int(json.loads(subprocess.run(command, check=True, capture_output=True).stdout.split()[-1]))

    rows = []
    for classes in CLASSES:
        forms = {form: step_of(form, classes) for form in FORMS if form != "shipped" or device.type == "cpu"}
        seconds = medians(forms, device)
        peers = [form for form in forms if form != "ours"]
        rows.append(
            {
                "classes": classes,
                "milliseconds": {form: round(1000 * value, 1) for form, value in seconds.items()},
                "time_ratio": {form: round(seconds["ours"] / seconds[form], 3) for form in peers},
                "peak_GiB": {form: round(memory(form, classes) / 2**30, 2) for form in forms},
                "memory_ratio": {form: round(memory("ours", classes) / memory(form, classes), 3) for form in peers},
            }
        )
        print(rows[-1], flush=True)
        del forms
    settings = {"config": str(arguments.config), "batch_size": batch_size, "size": size}
    save("train_step", {"machine": describe_machine(device), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
