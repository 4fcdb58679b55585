"""Detection with experts against its parts, and an expert's training step against a full one.

    python bench/experts.py [--config configs/gated.yaml] [--size 192] [--batch-size 8] [--device cuda]
    python bench/experts.py --config configs/lvis_base_rn50.yaml --size 800 --device cuda

Random images and unit text rows, fresh detectors. Detection with the base detector and 1 or 3 experts of no own layers,
each asked for its own names, is compared with the backbone once plus pyramid, head and scoring of each, timed apart.
The experts have their side branches, the parts have none. A training step is forward, losses, backward and AdamW. All
forms take turns.
"""

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from compile import random_batch
from measured import save
from torch.nn import functional as F

from ovd.build.detector import build_detector, configured_clip
from ovd.config import TrainConfig, load_config
from ovd.engine.step import Criterion, backward, set_initial_bias
from ovd.engine.step_texts import StepTexts
from ovd.experts.inference import Expert, ExpertInference
from ovd.experts.names import ExpertNames
from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.shared_layers import copy_sharing_layers, shared_parameters
from ovd.model.side_branch import SideBranch
from ovd.precision import autocast, describe_machine, memory_format, use_low_precision

ROUNDS = 9
NUM_EXPERTS = (1, 3)
OWN_LAYERS = (0, 1, 3, "all")
NAMES = 64
"""Names of each answerer."""


def medians(forms: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Seconds of each form; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(ROUNDS + 1):  # the first is a warm-up
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/gated.yaml"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(2)
    is_tiny = load_config(arguments.config, [], TrainConfig).clip.name == "tiny"
    config = load_config(arguments.config, [] if is_tiny else ["clip.weights=random"], TrainConfig)
    low_precision = use_low_precision("auto", device)
    torch.manual_seed(0)
    clip = configured_clip(config.clip)
    detector = build_detector(config, clip).to(device).to(memory_format=memory_format(low_precision)).eval()
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(arguments.batch_size, arguments.size, NAMES, generator).to(device)
    text = F.normalize(torch.randn(4 * NAMES, clip.dim, generator=generator), dim=1)
    rows = [text[number * NAMES : (number + 1) * NAMES] for number in range(4)]
    set_initial_bias(detector, batch, rows[0].to(device), low_precision)
    detection = time_detection(detector, batch, rows, arguments.size, low_precision)
    training = time_training(detector, batch, rows[0].to(device), config, low_precision)
    result = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "detection": detection,
        "training": training,
        "peak_memory_MB": round(
            torch.cuda.max_memory_allocated(device) / 2**20
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        ),
    }
    print(result)
    save(f"experts_{arguments.config.stem}", result)


def side_of(detector, low_precision: bool) -> SideBranch:
    """A fresh side branch for an expert."""
    branch = SideBranch(detector.backbone.channels, detector.backbone.strides)
    return branch.to(detector.device).to(memory_format=memory_format(low_precision))


def time_detection(detector, batch, rows, size: int, low_precision: bool) -> dict[str, object]:
    """Milliseconds of each form, and the ratio of each number of experts to the sum of its parts."""
    options = DetectionOptions(score_threshold=0.05, candidates=1000, max_detections=300)

    def inference_of(one) -> Inference:
        return Inference(one, size=size, options=options, low_precision=low_precision)

    base = inference_of(detector)
    experts = []
    for number in (1, 2, 3):
        copied, shared = copy_sharing_layers(detector, 0)
        copied.side = side_of(copied, low_precision)
        names = ExpertNames((), rows[number], rows[0], 1.0)
        experts.append(Expert(str(number), names, inference_of(copied), shared))
    sizes = torch.full((len(batch.images), 2), size)
    asked = {count: torch.cat(rows[: count + 1]) for count in NUM_EXPERTS}
    grouped = {count: ExpertInference(base, experts[:count], same_place="both") for count in NUM_EXPERTS}

    @torch.no_grad()
    def features():
        with autocast(batch.images.device, low_precision):
            return detector.features(batch.images)

    computed = features()

    @torch.no_grad()
    def rest():
        with autocast(batch.images.device, low_precision):
            predictions = detector.predict_from(computed, batch.images)
        predictions = base.without_padding(predictions, batch.images, batch.sizes)
        return base.detections(predictions, rows[0], batch.sizes, sizes)

    forms: dict[str, Callable[[], object]] = {
        "base alone": lambda: base.detect(rows[0], batch.images, batch.sizes, sizes),
        "backbone": features,
        "pyramid, head and scoring": rest,
    }
    for count in NUM_EXPERTS:
        forms[f"{count} experts"] = partial(grouped[count].detect, asked[count], batch.images, batch.sizes, sizes)
    seconds = medians(forms, batch.images.device)
    parts = {count: seconds["backbone"] + (count + 1) * seconds["pyramid, head and scoring"] for count in NUM_EXPERTS}
    return {
        "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        "ratio to parts": {count: round(seconds[f"{count} experts"] / parts[count], 3) for count in NUM_EXPERTS},
    }


def time_training(detector, batch, text, config: TrainConfig, low_precision: bool) -> dict[str, object]:
    """Milliseconds of a step by own layers, and their ratio to a full step."""
    criterion = Criterion(config.train.model_copy(update={"region_distillation": None}), None)
    mask = torch.ones(len(batch.images), len(text), dtype=torch.bool, device=text.device)
    texts = StepTexts(torch.arange(len(text), device=text.device), text, mask, mask, torch.zeros_like(mask[0]))
    forms: dict[str, Callable[[], object]] = {}
    for own in (*OWN_LAYERS, "full"):
        learner = copy.deepcopy(detector).train()
        if own != "full":
            learner.side = side_of(learner, low_precision)
            layers = learner.backbone.layers()
            for parameter in shared_parameters(learner.backbone, len(layers) if own == "all" else int(own)):
                parameter.requires_grad_(False)

        learned = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)

        def step(learner=learner, optimizer=optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            backward(learner, learner, batch, texts, criterion, step=0, low_precision=low_precision)
            optimizer.step()

        forms[str(own)] = step
    seconds = medians(forms, batch.images.device)
    return {
        "milliseconds": {name: round(1000 * value, 1) for name, value in seconds.items()},
        "ratio to full": {name: round(value / seconds["full"], 3) for name, value in seconds.items()},
    }


if __name__ == "__main__":
    main()
