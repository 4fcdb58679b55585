"""Replay a dumped training step whose loss or gradient was not finite."""

from pathlib import Path

import torch

from ovd.build.detector import resolve_compute
from ovd.build.learner import build_learner
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.engine.step import backward
from ovd.engine.step_dump import StepDump
from ovd.join_first import join_first


def replay_step(dump: Path) -> None:
    """Print the losses of each image of a dumped training step, in float32 on the CPU.

    Raises:
        ValueError: the file is not a dump, or its run's config is not beside it.
    """
    failed = StepDump.read(dump)
    weights, batch = failed.weights, failed.batch
    on_cpu = ["train.device=cpu", "train.precision=float32"]
    config = load_config(dump.parent / "config.yaml", on_cpu, TrainConfig)
    torch.manual_seed(config.train.seed)
    learner = build_learner(config, num_classes=len(weights.get("name_offsets", ())))
    detector, criterion = learner.detector, learner.criterion
    compute = resolve_compute(config)
    detector.load_state_dict(weights)
    print(f"losses in training: {', '.join(f'{name} {value:.4g}' for name, value in failed.losses.items())}")
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    print(f"weights that are not finite: {join_first(bad, 20) or 'none'}")
    for row, image_id in enumerate(batch.image_ids):
        image = slice(row, row + 1)
        one, its_texts = batch.of_images(image), failed.texts.of_images(image)
        with torch.no_grad():
            predictions = detector.train()(one.images)
        finite = [bool(value.isfinite().all()) for value in (predictions.embeddings, predictions.boxes)]
        values = backward(detector, detector, one, its_texts, criterion, step=failed.step, compute=compute)
        shown = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        print(f"image {image_id}: {shown}; embeddings finite: {finite[0]}, boxes finite: {finite[1]}")
