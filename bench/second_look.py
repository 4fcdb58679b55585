"""Detection with a second look against detection in one pass.

    python bench/second_look.py [--config configs/aligned.yaml] [--size 192] [--batch-size 16] [--device cuda]
    python bench/second_look.py --config configs/lvis_base_rn50.yaml --size 800 --classes 1203 --device cuda

Random images and unit text rows, a fresh detector, no score threshold, so that every image has as many boxes to look at
as it may have: the most that a second look can cost. One pass, one crop a box and three crops a box take turns, each
from images in memory to boxes.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from measured import save
from torch.nn import functional as F

from ovd.build.detector import build_detector, build_second_look, configured_clip
from ovd.config import TrainConfig, load_config
from ovd.inference import Inference
from ovd.model.detection_options import DetectionOptions, SecondLookOptions
from ovd.precision import describe_machine, memory_format, use_low_precision

ROUNDS = 9
VIEWS = {"one crop": ((1.1, 1.0),), "three crops": ((1.0, 1.0), (1.3, 1.0), (1.15, 0.75))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/aligned.yaml"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=287, help="names to detect (%(default)s)")
    parser.add_argument("--crops", type=int, default=20, help="boxes of an image to look at (%(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(2)
    is_tiny = load_config(arguments.config, [], TrainConfig).clip.name == "tiny"
    overrides = [f"train.device={arguments.device}", *([] if is_tiny else ["clip.weights=random"])]
    config = load_config(arguments.config, overrides, TrainConfig)
    low_precision = use_low_precision("auto", device)
    torch.manual_seed(0)
    clip = configured_clip(config.clip)
    detector = build_detector(config, clip).to(device).to(memory_format=memory_format(low_precision)).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch_size, 3, arguments.size, arguments.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    sizes = torch.full((arguments.batch_size, 2), arguments.size)
    text = F.normalize(torch.randn(arguments.classes, clip.dim, generator=generator), dim=1).to(device)
    options = DetectionOptions(
        score_threshold=0.0, nms_iou=0.6, max_detections=300, candidates=1000, competition=config.eval.competition
    )
    forms = {"one pass": Inference(detector, size=arguments.size, options=options, low_precision=low_precision)}
    for name, views in VIEWS.items():
        look = SecondLookOptions(crops=arguments.crops, views=views)
        forms[name] = Inference(
            detector,
            size=arguments.size,
            options=options.model_copy(update={"second_look": look}),
            low_precision=low_precision,
            second_look=build_second_look(config, look),
        )
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(ROUNDS + 1):  # the first is a warm-up
        for name, inference in forms.items():
            start = time.perf_counter()
            inference.detect(text, images, sizes, sizes)  # ends with boxes on the CPU
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "ratio": {name: round(medians[name] / medians["one pass"], 3) for name in VIEWS},
    }
    print(result)
    save(f"second_look_{arguments.config.stem}", result)


if __name__ == "__main__":
    main()
