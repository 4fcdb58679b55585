"""Replay a dumped training step whose loss or gradient was not finite."""

from pathlib import Path

import torch

from ovd.build.crops import build_region_teacher
from ovd.build.detector import build_detector, configured_clip
from ovd.build.trained import build_start
from ovd.config import TrainConfig, load_config
from ovd.engine.step import Criterion, backward
from ovd.engine.step_dump import read_step


def replay_step(dump: Path) -> None:
    """Print the losses of each image of a dumped training step, in float32 on the CPU.

    Raises:
        ValueError: the file is not a dump, or its run's config is not beside it.
    """
    step, weights, batch, texts, losses = read_step(dump)
    config = load_config(dump.parent / "config.yaml", [], TrainConfig)
    torch.manual_seed(config.train.seed)
    clip = configured_clip(config.clip)
    teacher = build_region_teacher(config, clip, device=torch.device("cpu"), low_precision=False)
    detector = build_detector(config, clip, num_classes=len(weights.get("name_offsets", ())))
    detector.load_state_dict(weights)
    print(f"as trained: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}")
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    print(f"weights that are not finite: {', '.join(bad[:20]) or 'none'}")
    before = build_start(config, device=torch.device("cpu"), low_precision=False)
    criterion = Criterion(config.train, config.data.pairs, teacher, before)
    for row, image_id in enumerate(batch.image_ids):
        image = slice(row, row + 1)
        one, its_texts = batch.of_images(image), texts.of_images(image)
        with torch.no_grad():
            predictions = detector.train()(one.images)
        finite = [bool(value.isfinite().all()) for value in (predictions.embeddings, predictions.boxes)]
        values = backward(detector, detector, one, its_texts, criterion, step=step, low_precision=False)
        shown = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        print(f"image {image_id}: {shown}; embeddings finite: {finite[0]}, boxes finite: {finite[1]}")
