"""Measure the training loader against decoding, decoding and one resize, and Pillow with torchvision's transforms.

    python bench/loader.py

JPEG files of 640 x 480 pixels with 8 boxes each are read, decoded, augmented (to 800 px with large-scale jitter, flip
and color jitter) and padded, in batches of 16 and all in one thread. torchvision's transforms do the same to Pillow's
images. The single resize is to 800 px, without jitter. If decoded pixels differ, no ratio is given.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from annotations import HEIGHT_PX, WIDTH_PX, write_annotations
from measured import measure_seconds, milliseconds, save, time_ratio
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from ovd.data.annotations import load_annotations
from ovd.data.images.read import read_image
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import train_loader
from ovd.data.loading.order import TrainOrder
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import TrainTransform
from ovd.data.report import DataReport
from ovd.heap import keep_freed_memory
from ovd.precision import describe_machine

NUM_IMAGES, BATCH_SIZE, BOXES_PER_IMAGE, QUALITY = 32, 16, 8, 90
SIZE, SCALE, FLIP, COLOR = 800, (0.1, 2.0), 0.5, 0.2
ROUNDS = 7


def write_images(index: AnnotationIndex) -> None:
    """Draw the index's images: smooth, with some noise, so that a file has about 1.5 bits per pixel."""
    rng = np.random.default_rng(0)
    for image in range(len(index)):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        path = index.encoded(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def cropped(sample: dict[str, Any]) -> dict[str, Any]:
    """Crop a random part of at most `SIZE` pixels per side."""
    width, height = sample["image"].size
    return v2.RandomCrop((min(height, SIZE), min(width, SIZE)))(sample)


def make_forms(index: AnnotationIndex) -> dict[str, Callable[[], object]]:
    """Return the forms of loading all images, by name."""
    paths = [index.encoded(image) for image in range(len(index))]
    transform = TrainTransform(size=SIZE, scale=SCALE, flip=FLIP, color=COLOR)
    order = TrainOrder(num_images=len(index), repeat=np.ones(len(index)), seed=0, batch_size=BATCH_SIZE)
    augment = v2.Compose(
        [
            v2.ScaleJitter((SIZE, SIZE), SCALE),
            cropped,
            v2.RandomHorizontalFlip(FLIP),
            v2.ColorJitter(COLOR, COLOR, COLOR, COLOR / 4),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
            v2.ToImage(),
        ]
    )

    def ours() -> None:
        for _ in train_loader(index, order, transform, range(len(index) // BATCH_SIZE), workers=0):
            pass

    def resize() -> None:
        for path in paths:
            cv2.resize(decoded(path), (SIZE, SIZE * HEIGHT_PX // WIDTH_PX))

    def torchvision() -> None:
        for first in range(0, len(index), BATCH_SIZE):
            images = []
            for image in range(first, first + BATCH_SIZE):
                labels = index.record(image).labels
                boxes = tv_tensors.BoundingBoxes(
                    torch.from_numpy(labels.boxes), format="XYXY", canvas_size=(HEIGHT_PX, WIDTH_PX)
                )
                sample = {
                    "image": Image.open(paths[image]).convert("RGB"),
                    "boxes": boxes,
                    "labels": torch.from_numpy(labels.classes),
                }
                images.append(augment(sample)["image"].as_subclass(torch.Tensor))
            pad_images(images)

    return {
        "ours": ours,
        "decoding": lambda: [decoded(path) for path in paths],
        "decoding and a resize": resize,
        "Pillow and torchvision": torchvision,
    }


def main() -> None:
    keep_freed_memory()  # as all tools do; peers in this process have the same
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "annotations.json"
        write_annotations(annotations, NUM_IMAGES, BOXES_PER_IMAGE, mask_numbers=8)
        index = load_annotations(annotations, Path(folder), format="lvis", report=DataReport())
        write_images(index)
        path = index.encoded(0)
        if not np.array_equal(read_image(path), decoded(path)):
            raise SystemExit("no ratio: decoded pixels differ")
        seconds = measure_seconds(make_forms(index), torch.device("cpu"), rounds=ROUNDS)
        kilobytes = sum(index.encoded(image).stat().st_size for image in range(len(index))) / len(index) / 1000
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "settings": {"size": SIZE, "scale": SCALE, "flip": FLIP, "color": COLOR, "kilobytes_per_image": kilobytes},
        "ratio": {f"time of {peer}": time_ratio(seconds, "ours", peer) for peer in list(seconds)[1:]},
        "images_per_s": {form: round(NUM_IMAGES / statistics.median(values), 1) for form, values in seconds.items()},
        "milliseconds": milliseconds(seconds),
    }
    print(result)
    save("loader", result, torch.device("cpu"))


if __name__ == "__main__":
    main()
