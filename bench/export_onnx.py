"""Compare exported detectors with the detectors themselves: equal detections, size and latency.

    python bench/export_onnx.py --run runs/quickstart --images data/world/KEY/images/val \
        --calibration data/world/KEY/images/train

Latency is that of each form in turn on single images, with two threads, from an array in memory to boxes; half
precision and 8 bits beside float32. Detections without an equal on the other side (same class, IoU over 0.99, score
within 1e-3) are counted: for the run on 100 images of a folder, with its own vocabulary, one of other words, and 1,203
random text rows; and for every family of backbones, at random weights and miniature size, on 100 images of noise. (A
script named onnx.py would hide the package.)
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measured import measure_seconds, milliseconds, save, time_ratio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # which build the small detectors

from small_backbones import FAMILIES
from small_export import (
    OPTIONS,
    both_forms,
    detections_of_both,
    dim_of,
    noise_of,
    num_without_equal,
    random_detector,
    unit_rows,
)

from ovd.build.text import evaluation_text
from ovd.build.trained import build_inference, load_detector
from ovd.data.images.files import find_images
from ovd.data.images.read import read_image
from ovd.export.detector import export_detector
from ovd.export.smaller import calibration_images, quantize, to_half
from ovd.model.query_texts import QueryTexts
from ovd.onnx import Predictor
from ovd.precision import describe_machine
from ovd.predictor import Predictor as TorchPredictor

THREADS = 2
OTHER_WORDS = (
    "a red fire truck", "tree", "coffee cup", "cat face", "person", "traffic light", "musical note", "hourglass",
    "arrow pointing right", "snow crystal", "warning sign", "black chess knight",
)  # fmt: skip
ROWS = 1203
SHAPES = ((2, 3), (3, 2), (1, 4), (2, 2), (5, 3))


def families(num_images: int) -> list[dict[str, object]]:
    """Count the detections without an equal of every family, in batches of one and two images of five shapes."""
    rows = []
    for family in FAMILIES:
        detector = random_detector(family)
        dim, divisor = dim_of(detector), detector.size_divisor
        with tempfile.TemporaryDirectory() as folder:
            inference, session = both_forms(detector, Path(folder) / "model.onnx", OPTIONS)
        found = different = seen = 0
        while seen < num_images:
            height, width = SHAPES[seen % len(SHAPES)]
            images, sizes = noise_of(min(1 + seen % 2, num_images - seen), height * divisor, width * divisor, seed=seen)
            for own, exported in detections_of_both(inference, session, images, sizes, unit_rows(7, dim, seen)):
                found += len(own.scores)
                different += num_without_equal(own, exported)
            seen += len(images)
        rows.append({"family": family, "images": seen, "detections": found, "without equal": different})
        print(rows[-1], flush=True)
    return rows


def vocabularies(run: Path, model: Path, images: Sequence[np.ndarray]) -> list[dict[str, object]]:
    """Count the detections without an equal of a run, for three vocabularies."""
    trained = load_detector(run, "cpu")
    inference, predictor = build_inference(trained), Predictor.load(model, threads=THREADS)
    own_words = trained.classes
    texts = {
        f"its own {len(own_words)} names": evaluation_text(trained.config, trained.clip, own_words),
        f"{len(OTHER_WORDS)} other names": evaluation_text(trained.config, trained.clip, OTHER_WORDS),
        f"{ROWS:,} random rows": unit_rows(ROWS, trained.clip.dim),
    }
    rows = []
    for name, text in texts.items():
        pairs = [(inference.image(QueryTexts(text), image), predictor.detect(image, text.numpy())) for image in images]
        different = sum(num_without_equal(*pair) for pair in pairs)
        found = sum(len(own.scores) for own, _ in pairs)
        rows.append({"vocabulary": name, "images": len(pairs), "detections": found, "without equal": different})
        print(rows[-1], flush=True)
    return rows


def forms_of(run: Path, folder: Path, calibration: Path) -> dict[str, Path]:
    """Export the run in three forms."""
    trained = load_detector(run, "cpu")
    forms = {name: folder / f"{name}.onnx" for name in ("float32", "fp16", "int8")}
    for path in forms.values():
        export_detector(trained, path)
    to_half(forms["fp16"])
    quantize(forms["int8"], calibration_images(calibration), dim=trained.clip.dim)
    return forms


def latencies(
    run: Path, forms: dict[str, Path], images: Sequence[np.ndarray], num_names: int
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Measure the size of each form, and its milliseconds per image."""
    torch_predictor = TorchPredictor(load_detector(run, "cpu"))
    names = [f"name {number}" for number in range(num_names)]

    def detect(predictor: TorchPredictor | Predictor) -> None:
        for image in images:
            predictor(image, names)

    predictors: dict[str, TorchPredictor | Predictor] = {"eager": torch_predictor}
    predictors |= {name: Predictor.load(path, threads=THREADS) for name, path in forms.items()}
    work = {name: partial(detect, predictor) for name, predictor in predictors.items()}
    seconds = measure_seconds(work, torch.device("cpu"))
    weights = torch_predictor._trained.weights
    sizes = {"eager": weights.stat().st_size if weights else 0} | {
        name: path.stat().st_size for name, path in forms.items()
    }
    rows: list[dict[str, object]] = []
    for name, values in milliseconds(seconds).items():
        each = round(statistics.median(values) / len(images), 1)
        rows.append({"form": name, "names": num_names, "MB": round(sizes[name] / 1e6, 1), "ms per image": each})
        print(rows[-1], flush=True)
    return rows, {f"{name}, {num_names} names": time_ratio(seconds, name, "eager") for name in forms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    parser.add_argument("--images", type=Path, required=True, help="folder of images that are detected in")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of images for int8")
    parser.add_argument("--count", type=int, default=100, help="images of each comparison (%(default)s)")
    parser.add_argument("--timed", type=int, default=5, help="images that are timed (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    paths = find_images(arguments.images)
    chosen = np.linspace(0, len(paths) - 1, min(arguments.count, len(paths))).astype(int)
    images = [read_image(paths[row]) for row in chosen]
    with tempfile.TemporaryDirectory() as folder:
        forms = forms_of(arguments.run, Path(folder), arguments.calibration)
        timed: list[dict[str, object]] = []
        ratio: dict[str, float] = {}
        for num_names in (3, 287):
            rows, ratios = latencies(arguments.run, forms, images[: arguments.timed], num_names)
            timed += rows
            ratio |= ratios
        figures = {
            "machine": describe_machine(torch.device("cpu")),
            "ratio": ratio,
            "latency": timed,
            "vocabularies": vocabularies(arguments.run, forms["float32"], images),
            "families": families(arguments.count),
        }
    save("export_onnx", figures, torch.device("cpu"))


if __name__ == "__main__":
    main()
