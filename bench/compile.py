"""Measure training steps and detection with torch.compile against the same without it.

    python bench/compile.py [--config configs/gated.yaml] [--size 192] [--batch-size 8] [--classes 1203] [--device cuda]

A training step (forward, class, box and quality loss, backward) of the config's fresh detector, and detection up to the
boxes, on random images with three boxes each and random unit text rows. Both forms take turns. The first call of the
compiled form is timed separately. If the losses differ by more than a thousandth, no ratio is given.
"""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from inputs import argument_parser, build_bench_detector
from measured import measure_medians, save

from ovd.engine.step import Criterion, backward, set_initial_bias
from ovd.inference import ImageBatch, Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine

LARGEST_DIFFERENCE = 1e-3


def main() -> None:
    parser = argument_parser(__doc__, config="configs/gated.yaml", batch_size=8)
    parser.add_argument("--classes", type=int, default=1203, help="rows of a step and of detection (%(default)s)")
    arguments = parser.parse_args()
    device = arguments.device
    bench = build_bench_detector(arguments.config, device)
    config, plain, compute = bench.config, bench.detector, bench.compute
    batch = bench.batch(arguments.batch_size, arguments.size, arguments.classes)
    rows = bench.text(arguments.classes)
    texts = bench.step_texts(rows, arguments.batch_size)
    queries, images = QueryTexts(rows), ImageBatch(batch.images, batch.sizes, batch.sizes)
    set_initial_bias(plain, batch, rows, compute)
    options = DetectionOptions(score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=2000)
    forms = {
        use_compiled: Inference(detector, size=arguments.size, options=options, low_precision=compute.low_precision)
        for use_compiled, detector in ((False, plain), (True, copy.deepcopy(plain)))
    }
    forms[True].compile()

    def step(use_compiled: bool) -> float:
        detector = forms[use_compiled].detector
        detector.train().zero_grad()
        section = config.train.model_copy(update={"assignment": "fcos", "compile": use_compiled})
        criterion = Criterion(section, config.data.pairs)
        losses = backward(detector, detector, batch, texts, criterion, step=0, compute=compute)
        return sum(loss.item() for loss in losses.values())

    def look(use_compiled: bool) -> float:
        forms[use_compiled].detector.eval()
        found = forms[use_compiled].detect(queries, images)
        return sum(item.scores.sum().item() for item in found)

    result: dict[str, object] = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
    }
    for name, work in (("training step", step), ("detection", look)):
        result[name] = compare(work, device)
        print(f"{name}: {result[name]}", flush=True)
    save("compile", result, device)


def compare(work: Callable[[bool], float], device: torch.device) -> dict[str, object]:
    """Time the plain and the compiled form in turns, and return their seconds and ratio.

    Args:
        work: function of whether to use the compiled form; both forms must return the same number.
    """
    expected = work(False)
    start = time.perf_counter()
    measured = work(True)
    first = time.perf_counter() - start
    difference = abs(measured - expected) / abs(expected)
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"no ratio: compiled {measured}, else {expected}")
    seconds = measure_medians({"plain": partial(work, False), "compiled": partial(work, True)}, device)
    return {
        "ratio": round(seconds["plain"] / seconds["compiled"], 3),
        "plain_s": round(seconds["plain"], 4),
        "compiled_s": round(seconds["compiled"], 4),
        "first_compiled_s": round(first, 1),
        "relative_difference": float(f"{difference:.1e}"),
    }


if __name__ == "__main__":
    main()
