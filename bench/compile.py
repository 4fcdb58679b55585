"""Training steps and detection with torch.compile against the same without.

    python bench/compile.py [--config configs/gated.yaml] [--size 192] [--batch-size 8] [--classes 1203] [--device cuda]

Random images with three boxes each, random unit text rows: a training step (forward, class, box and quality loss,
backward) of a fresh detector in the config's form, and detection up to the boxes. Both forms take turns. The first call
of the compiled form is timed apart; a difference of losses above a thousandth, and there is no ratio.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from measured import save
from torch.nn import functional as F

from ovd.build.detector import build_detector, configured_clip
from ovd.config import TrainConfig, load_config
from ovd.engine.step import Criterion, backward, set_initial_bias
from ovd.engine.step_texts import StepTexts
from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions
from ovd.precision import describe_machine, memory_format, use_low_precision
from ovd.structures import Batch, Targets

ROUNDS = 9
LARGEST_DIFFERENCE = 1e-3


def random_batch(batch_size: int, size: int, num_classes: int, generator: torch.Generator) -> Batch:
    corners = torch.rand(batch_size, 3, 2, generator=generator) * size * 0.6
    sides = (0.1 + 0.3 * torch.rand(batch_size, 3, 2, generator=generator)) * size
    return Batch.without_pairs(
        images=torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, generator=generator),
        sizes=torch.full((batch_size, 2), size),
        targets=tuple(
            replace(
                Targets.empty(),
                boxes=torch.cat([corner, corner + side], dim=1),
                classes=torch.randint(num_classes, (3,), generator=generator),
            )
            for corner, side in zip(corners, sides, strict=True)
        ),
        image_ids=tuple(range(batch_size)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/gated.yaml"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=1203, help="rows of a step and of detection (%(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(2)
    is_tiny = load_config(arguments.config, [], TrainConfig).clip.name == "tiny"
    config = load_config(arguments.config, [] if is_tiny else ["clip.weights=random"], TrainConfig)
    low_precision = use_low_precision("auto", device)
    torch.manual_seed(0)
    clip = configured_clip(config.clip)
    plain = build_detector(config, clip).to(device)
    plain = plain.to(memory_format=memory_format(low_precision)).train()
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(arguments.batch_size, arguments.size, arguments.classes, generator).to(device)
    rows = F.normalize(torch.randn(arguments.classes, clip.dim, generator=generator), dim=1).to(device)
    mask = torch.ones(arguments.batch_size, arguments.classes, dtype=torch.bool, device=device)
    texts = StepTexts(torch.arange(arguments.classes, device=device), rows, mask, mask, torch.zeros_like(mask[0]))
    set_initial_bias(plain, batch, rows, low_precision)
    options = DetectionOptions(score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=2000)
    forms = {
        use_compiled: Inference(detector, size=arguments.size, options=options, low_precision=low_precision)
        for use_compiled, detector in ((False, plain), (True, copy.deepcopy(plain)))
    }
    forms[True].compile()

    def step(use_compiled: bool) -> float:
        detector = forms[use_compiled].detector
        detector.train().zero_grad()
        section = config.train.model_copy(update={"assignment": "fcos", "compile": use_compiled})
        criterion = Criterion(section, config.data.pairs)
        losses = backward(detector, detector, batch, texts, criterion, step=0, low_precision=low_precision)
        return sum(loss.item() for loss in losses.values())

    def look(use_compiled: bool) -> float:
        forms[use_compiled].detector.eval()
        found = forms[use_compiled].detect(rows, batch.images, batch.sizes, batch.sizes)
        return sum(item.scores.sum().item() for item in found)

    result: dict[str, object] = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
    }
    for name, work in (("training step", step), ("detection", look)):
        result[name] = compare(work)
        print(f"{name}: {result[name]}", flush=True)
    save("compile", result)


def compare(work: Callable[[bool], float]) -> dict[str, object]:
    """Seconds of both forms, taking turns, and their ratio.

    Args:
        work: does it in the plain or the compiled form; what it returns must be the same.
    """
    expected = work(False)
    start = time.perf_counter()
    measured = work(True)
    first = time.perf_counter() - start
    difference = abs(measured - expected) / abs(expected)
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"no ratio: compiled {measured}, else {expected}")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for use_compiled in (False, True):
            start = time.perf_counter()
            work(use_compiled)
            seconds[use_compiled].append(time.perf_counter() - start)
    medians = {use_compiled: statistics.median(values) for use_compiled, values in seconds.items()}
    return {
        "ratio": round(medians[False] / medians[True], 3),
        "plain_s": round(medians[False], 4),
        "compiled_s": round(medians[True], 4),
        "first_compiled_s": round(first, 1),
        "relative_difference": float(f"{difference:.1e}"),
    }


if __name__ == "__main__":
    main()
