"""Measure detection with experts against its parts, and an expert's training step against a full one.

    python bench/experts.py [--config configs/gated.yaml] [--size 192] [--batch-size 8] [--device cuda]
    python bench/experts.py --config configs/lvis_base_rn50.yaml --size 800 --device cuda

Random images and unit text rows, fresh detectors. Detection with the base detector and 1 or 3 experts without own
layers, each with names of its own, is compared with the sum of its parts, timed separately: the backbone once, and
pyramid, head and scoring of each. The experts have their side branches; the sum is given without and with them. Experts
that share no layers, since all layers are their own or have adapters, are timed beside them. A training step is
forward, losses, backward and AdamW; "5 and adapters" is the form of configs/expert.yaml. All forms take turns.
"""

import copy
import resource
from collections.abc import Callable
from functools import partial

import torch
from inputs import BenchDetector, argument_parser, build_bench_detector
from measured import measure_medians, save
from torch import Tensor

from ovd.engine.step import Criterion, backward, set_initial_bias
from ovd.experts.inference import Expert, ExpertInference
from ovd.experts.names import ExpertNames
from ovd.inference import ImageBatch, ImageQueries, Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.low_rank import add_adapters
from ovd.model.query_texts import QueryTexts
from ovd.model.shared_layers import copy_sharing_layers, shared_parameters
from ovd.model.side_branch import SideBranch
from ovd.precision import describe_machine
from ovd.structures import Batch

NUM_EXPERTS = (1, 3)
TRAINED = {"0": (0, 0), "3": (3, 0), "5": (5, 0), "5 and adapters": (5, 8), "all": (None, 0)}
"""Number of own layers of an expert, None for all, and rank of the adapters in the others."""
NAMES = 64
"""Number of names of the base detector and of each expert."""


def main() -> None:
    parser = argument_parser(__doc__, config="configs/gated.yaml", batch_size=8)
    arguments = parser.parse_args()
    device = arguments.device
    bench = build_bench_detector(arguments.config, device)
    batch = bench.batch(arguments.batch_size, arguments.size, NAMES)
    rows = [bench.text(NAMES) for _ in range(1 + max(NUM_EXPERTS))]
    set_initial_bias(bench.detector, batch, rows[0], bench.compute)
    result = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "detection": time_detection(bench, batch, rows),
        "training": time_training(bench, batch, rows[0]),
        "peak_memory_MB": round(
            torch.cuda.max_memory_allocated(device) / 2**20
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        ),
    }
    print(result)
    save(f"experts_{arguments.config.stem}", result, device)


def side_of(bench: BenchDetector) -> SideBranch:
    """Build a fresh side branch for an expert that learns."""
    backbone = bench.detector.backbone
    return bench.compute.place(SideBranch(backbone.channels, backbone.strides))


def frozen_side_of(bench: BenchDetector) -> SideBranch:
    """Build a fresh side branch that only detects."""
    return bench.compute.freeze(side_of(bench))


def time_detection(bench: BenchDetector, batch: Batch, rows: list[Tensor]) -> dict[str, object]:
    """Measure the milliseconds of each form, and the ratio of each number of experts to the sum of its parts."""
    detector, compute, size = copy.deepcopy(bench.detector), bench.compute, batch.images.shape[-1]
    bench.compute.freeze(detector)  # as `build_own_inference` does; the fresh one trains afterwards
    options = DetectionOptions(score_threshold=0.05, candidates=1000, max_detections=300)

    def inference_of(one) -> Inference:
        return Inference(one, size=size, options=options, low_precision=compute.low_precision)

    base = inference_of(detector)

    def expert_of(number: int, *, shares: bool) -> Expert:
        own_layers = 0 if shares else len(detector.backbone.layers())
        copied, shared = copy_sharing_layers(detector, own_layers)
        copied.side = frozen_side_of(bench)
        return Expert(str(number), ExpertNames((), rows[number], rows[0], 1.0), inference_of(copied), shared)

    images = ImageBatch(batch.images, batch.sizes, torch.full((len(batch.images), 2), size))
    of_base = QueryTexts(rows[0])
    asked = {count: QueryTexts(torch.cat(rows[: count + 1])) for count in NUM_EXPERTS}

    @torch.no_grad()
    def features():
        with compute.autocast():
            pixels = detector.normalize(batch.images)
            return detector.backbone(pixels), pixels

    computed = features()

    @torch.no_grad()
    def rest():
        with compute.autocast():
            predictions = detector.predict_from(*computed)
        predictions = base.without_padding(predictions, batch.images, batch.sizes)
        own = ImageQueries(slice(None), of_base)
        return base.detections(predictions, ImageBatch(batch.images, batch.sizes, batch.sizes), [own])

    side = frozen_side_of(bench)

    @torch.no_grad()
    def side_branch():
        with compute.autocast():
            return side(computed[1], computed[0].features)

    forms: dict[str, Callable[[], object]] = {
        "base alone": lambda: base.detect(of_base, images),
        "backbone": features,
        "pyramid, head and scoring": rest,
        "side branch": side_branch,
    }
    for shares in (True, False):
        experts = [expert_of(number, shares=shares) for number in range(1, 1 + max(NUM_EXPERTS))]
        for count in NUM_EXPERTS:
            name = f"{count} experts" + ("" if shares else " that share no layers")
            grouped = ExpertInference(base, experts[:count], same_place="both")
            forms[name] = partial(grouped.detect, asked[count], images)
    seconds = measure_medians(forms, batch.images.device)
    parts = {count: seconds["backbone"] + (count + 1) * seconds["pyramid, head and scoring"] for count in NUM_EXPERTS}
    return {
        "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "ratio to parts": {count: round(seconds[f"{count} experts"] / parts[count], 3) for count in NUM_EXPERTS},
        "ratio to parts and side branches": {
            count: round(seconds[f"{count} experts"] / (parts[count] + count * seconds["side branch"]), 3)
            for count in NUM_EXPERTS
        },
    }


def time_training(bench: BenchDetector, batch: Batch, text: Tensor) -> dict[str, object]:
    """Measure the milliseconds of a step by number of own layers, and their ratio to a full step."""
    criterion = Criterion(bench.config.train.model_copy(update={"region_distillation": None}), None)
    texts = bench.step_texts(text, len(batch.images))
    forms: dict[str, Callable[[], object]] = {}
    for form, trained in {**TRAINED, "full": None}.items():
        learner = copy.deepcopy(bench.detector).train()
        if trained is not None:
            own_layers, rank = trained
            learner.side = side_of(bench)
            shared = shared_parameters(
                learner.backbone, len(learner.backbone.layers()) if own_layers is None else own_layers
            )
            for parameter in shared:
                parameter.requires_grad_(False)
            if rank:
                add_adapters(learner.backbone, shared, rank)

        learned = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)

        def step(learner=learner, optimizer=optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            backward(learner, learner, batch, texts, criterion, step=0, compute=bench.compute)
            optimizer.step()

        forms[form] = step
    seconds = measure_medians(forms, batch.images.device)
    return {
        "milliseconds": {name: round(1000 * value, 1) for name, value in seconds.items()},
        "ratio to full": {name: round(value / seconds["full"], 3) for name, value in seconds.items()},
    }


if __name__ == "__main__":
    main()
