"""Measure how many of an image's best boxes a prefilter keeps, for large vocabularies and a trained detector.

    python bench/prefilter.py runs/quickstart --images data/world/KEY/images/val
    python bench/prefilter.py runs/quickstart --images photos --size 640

The names are the detector's own, then whole words of CLIP's tokenizer. The 300 best boxes of an image are found with
all points scored (without `eval.prefilter`); counted is the share of them that is also found when only a share of the
points is scored, with the same class, box and score. Competition between names and the second look are off, since with
them the best boxes are fewer.
"""

import argparse
from pathlib import Path

import open_clip
import torch
from measured import save

from ovd.build.detector import resolve_device
from ovd.build.trained import build_inference, load_detector
from ovd.data.images.read import read_image
from ovd.inference import BatchDetector
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine
from ovd.predictor import PromptEncoder
from ovd.progress import progress
from ovd.structures import Detections

VOCABULARIES = (1203, 13_000, 20_000)
SHARES = (0.05, 0.1, 0.15, 0.2)
NUM_IMAGES = 24
BEST = 300
END_OF_WORD = "</w>"
SHORTEST_WORD = 3


def words() -> list[str]:
    """Return the whole words of the tokenizer's vocabulary, the most frequent first."""
    tokens = open_clip.SimpleTokenizer().encoder
    whole = [token.removesuffix(END_OF_WORD) for token in tokens if token.endswith(END_OF_WORD)]
    return [word for word in whole if len(word) >= SHORTEST_WORD and word.isascii() and word.isalpha()]


def boxes_of(found: Detections) -> set[tuple[float, ...]]:
    """Return each box as rounded numbers that can be compared."""
    columns = (found.classes.tolist(), found.boxes.round(decimals=2).tolist(), found.scores.tolist())
    return {(name, *box, round(score, 5)) for name, box, score in zip(*columns, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained detector")
    parser.add_argument("--images", type=Path, required=True, help=f"folder; its first {NUM_IMAGES} JPEGs are taken")
    parser.add_argument("--size", type=int, help="longest image side in pixels (default: as trained)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    trained = load_detector(arguments.run)
    options = DetectionOptions(max_detections=BEST)
    inferences: dict[float | None, BatchDetector] = {
        share: build_inference(trained, size=arguments.size, options=options, prefilter=share)
        for share in (None, *SHARES)
    }
    names = list(dict.fromkeys([*trained.classes, *words()]))[: max(VOCABULARIES)]
    text = PromptEncoder(trained).rows(tuple(names))
    files = sorted(arguments.images.rglob("*.jpg"))[:NUM_IMAGES]
    kept: dict[tuple[int, float], list[float]] = {(count, share): [] for count in VOCABULARIES for share in SHARES}
    for file in progress(files, len(files), "images"):
        pixels = read_image(file)
        for count in VOCABULARIES:
            found = {share: boxes_of(one.image(QueryTexts(text[:count]), pixels)) for share, one in inferences.items()}
            for share in SHARES:
                kept[count, share].append(len(found[None] & found[share]) / max(1, len(found[None])))
    rows = [
        {"names": count, "share": share, "kept": round(sum(of_images) / len(files), 4), "lowest": min(of_images)}
        for (count, share), of_images in kept.items()
    ]
    for row in rows:
        print(row)
    settings = {"run": str(arguments.run), "images": len(files), "size": arguments.size or trained.config.data.size}
    device = resolve_device(trained.config)
    save("prefilter", {"machine": describe_machine(device), "settings": settings, "rows": rows}, device)


if __name__ == "__main__":
    main()
