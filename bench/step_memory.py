"""Measure the peak memory of a training step that scores every class of the vocabulary, against one of 80 classes.

    python bench/step_memory.py                    # CLIP's ResNet-50, 2 images of 320 px
    python bench/step_memory.py --device cuda      # 16 images of 800 px

`train.negatives=all` with 80, 1,203 and 13,000 classes; each peak is the memory that model and two steps add to a
process of their own on a CPU, or to torch's memory on a GPU.
"""

from inputs import parse_with_sizes
from measured import run_in_subprocess, save
from train_step import peak_bytes

from ovd.precision import describe_machine

CLASSES = (80, 1203, 13_000)


def main() -> None:
    arguments = parse_with_sizes(__doc__)
    peaks = {}
    for num_classes in CLASSES:
        settings = (num_classes, arguments.config, arguments.batch_size, arguments.size, arguments.device)
        peaks[num_classes] = run_in_subprocess(peak_bytes, "ours", *settings, device=arguments.device)
        print(f"{num_classes:,} classes: {peaks[num_classes] / 2**20:,.0f} MiB", flush=True)
    ratio = {f"{count:,} classes": round(peaks[count] / peaks[CLASSES[0]], 3) for count in CLASSES[1:]}
    print(ratio)
    result = {
        "machine": describe_machine(arguments.device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "ratio": ratio,
        "peak_MB": {f"{count:,} classes": round(value / 2**20) for count, value in peaks.items()},
    }
    save("step_memory", result, arguments.device)


if __name__ == "__main__":
    main()
