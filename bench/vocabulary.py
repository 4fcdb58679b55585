"""Measure detection with large vocabularies against the same detector with 80 names.

    python bench/vocabulary.py                     # CLIP's ResNet-50, 2 images of 320 px
    python bench/vocabulary.py --device cuda       # 16 images of 800 px

Random images, weights and text rows; each vocabulary includes the smaller ones, and the large ones are detected with a
prefilter as well (bench/prefilter.py measures what it keeps). All forms take turns. A larger vocabulary cannot lower an
image's best score; if it does, no ratio is given.
"""

from collections.abc import Callable
from functools import partial

import torch
from inputs import build_bench_detector, parse_with_sizes
from measured import measure_seconds, milliseconds, save, time_ratio

from ovd.inference import ImageBatch
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine
from ovd.structures import Detections

VOCABULARIES = (80, 1203, 4585, 13_000, 20_000)
PREFILTERED = (1203, 13_000, 20_000)
PREFILTER = 0.15
OPTIONS = DetectionOptions(score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=2000)
ROUNDS = 25
ROUNDING = 1e-3


def main() -> None:
    arguments = parse_with_sizes(__doc__)
    device = arguments.device
    bench = build_bench_detector(arguments.config, device)
    batch, text = bench.batch(arguments.batch_size, arguments.size, 1), bench.text(max(VOCABULARIES))
    images = ImageBatch(batch.images, batch.sizes, batch.sizes)

    def detect(count: int, prefilter: float | None) -> Callable[[], tuple[Detections, ...]]:
        options = OPTIONS.model_copy(update={"prefilter": prefilter})
        inference = bench.inference(size=arguments.size, options=options)
        return partial(inference.detect, QueryTexts(text[:count]), images)

    forms = {f"{count:,} names": detect(count, None) for count in VOCABULARIES}
    best = torch.tensor([[float(found.scores.max()) for found in form()] for form in forms.values()])
    if (best.diff(dim=0) < -ROUNDING).any():
        raise SystemExit(f"no ratio: the best scores are {best}")
    forms |= {f"{count:,} names, prefilter": detect(count, PREFILTER) for count in PREFILTERED}
    seconds = measure_seconds(forms, device, rounds=ROUNDS)
    smallest, *larger = forms
    result = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "ratio": {f"time, {name}": time_ratio(seconds, name, smallest) for name in larger},
        "milliseconds": milliseconds(seconds),
    }
    print(result)
    save("vocabulary", result, device)


if __name__ == "__main__":
    main()
