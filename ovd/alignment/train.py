"""Training of an alignment in one explicit loop: load, find boxes, encode their crops with CLIP, step, save.

Under torchrun every rank runs the loop on its part of each batch; losses, gradients and checkpoints are those of the
whole batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from ovd.alignment.data import AlignmentData
from ovd.alignment.distillation import Distillation
from ovd.alignment.losses import DenseFeature
from ovd.config.alignment import AlignSection
from ovd.data.report import DataReport
from ovd.distributed import (
    data_parallel,
    raise_on_all_ranks,
    sum_over_ranks,
    world_size,
)
from ovd.engine import checkpoint
from ovd.engine.batches import count_samples, until_stopped
from ovd.engine.checkpoint_writer import CheckpointWriter
from ovd.engine.log import NoLog, RunLog, open_log
from ovd.engine.notes import Notes
from ovd.engine.optim import (
    build_optimizer,
    check_finite,
    gradient_norm,
    learning_rate_factor,
    set_learning_rate,
    step_if_finite,
)
from ovd.engine.parameter_groups import GroupSpec, parameter_groups
from ovd.engine.signals import StopRequest, exit_stopped
from ovd.engine.step import pad_to_common_size
from ovd.engine.train_state import TrainState
from ovd.model.backbone import Backbone
from ovd.structures import Batch


def build_groups(student: Backbone, settings: AlignSection) -> list[dict[str, Any]]:
    """Build the optimizer's parameter groups: CLIP's trunk, and its pooling and projection.

    With a `projection_rate` of 0 pooling and projection are frozen.
    """
    projection = student.projection_parameters()
    if settings.projection_rate == 0:
        for parameter in projection:
            parameter.requires_grad_(False)
    trunk = [parameter for layer in student.layers() for parameter in layer]
    return parameter_groups(
        student,
        {
            "trunk": GroupSpec(trunk, weight_decay=settings.weight_decay),
            "projection": GroupSpec(projection, settings.projection_rate, settings.weight_decay),
        },
    )


@dataclass(frozen=True)
class HeldOutLosses:
    """Mean losses of the held-out images before and after training: 1 - cosine with CLIP's embedding of the crop."""

    before: dict[str, float]
    after: dict[str, float]


def align(
    distillation: Distillation, data: AlignmentData, found: checkpoint.Checkpoint | None, notes: Notes
) -> HeldOutLosses:
    """Train the student in place, from its present weights or from a checkpoint of the same run.

    Args:
        notes: notes that the checkpoints store.

    Raises:
        NonFiniteError: a loss or gradient is not finite; no step was taken and nothing was saved after it.
        DataError: too many images cannot be read.
        SystemExit: 143, after a checkpoint, on SIGTERM, SIGUSR1, SIGHUP or Ctrl-C.
    """
    config, student = distillation.config, distillation.student
    settings = config.train
    if settings.recompute:
        student.checkpoint_activations()
    state = TrainState(student, build_optimizer(build_groups(student, settings), lr=settings.learning_rate))
    if found is not None:
        checkpoint.restore(found, state)
        state.step = found.step
    checkpoints = CheckpointWriter(
        config.output, keep=settings.keep_checkpoints, config=config.model_dump(mode="json"), notes=notes
    )
    if found is None:
        before = distillation.measure(_count_in_report(data.held_out(), data.report, checkpoints))
    else:
        if state.step < settings.steps:
            checkpoints.rotate_report()
        assert found.notes.before is not None
        before = dict(found.notes.before)
    checkpoints.notes = replace(notes, before=before)
    dense_feature = data_parallel(DenseFeature(student), distillation.compute.device)
    with raise_on_all_ranks():
        run_log = open_log(config.output, settings.steps, state.step, None, checkpoints.config)
    with run_log as log, StopRequest() as stop:
        num_steps_left = settings.steps - state.step
        remaining = islice(data.batches_from(state.step), num_steps_left)
        for batch in until_stopped(count_samples(remaining, data.report, data.num_images, checkpoints), stop):
            _take_step(distillation, dense_feature, state, batch, log)
            state.step += 1
            if state.step == settings.steps:
                break
            if state.step % settings.save_every == 0:
                checkpoints.save(state, data.report, must_succeed=False, warning=log.warning)
        if num_steps_left:
            checkpoints.save(state, data.report, must_succeed=True, warning=log.warning)
        if state.step < settings.steps:
            exit_stopped(state.step, log.message)
        after = distillation.measure(data.held_out())
        log.evaluation(settings.steps, {f"held-out {name}": value for name, value in after.items()})
    return HeldOutLosses(before, after)


def _count_in_report(batches: Iterator[Batch], report: DataReport, checkpoints: CheckpointWriter) -> Iterator[Batch]:
    """Yield the batches, count their samples in the report and write it at the end."""
    for batch in batches:
        report.add_batch(batch)
        yield batch
    checkpoints.write_report(report)


def _take_step(
    distillation: Distillation, dense_feature: nn.Module, state: TrainState, batch: Batch, log: RunLog | NoLog
) -> None:
    """Take one optimizer step; none if no image of the batch can be read on any rank."""
    settings, step = distillation.config.train, state.step
    num_images, num_boxes = sum_over_ranks(torch.tensor([len(batch.image_ids), distillation.num_boxes(batch)])).tolist()
    if num_images == 0:
        log.message(f"step {step}: every image was skipped ({batch.skipped[0]}); no optimizer step")
        return
    factor = learning_rate_factor(step, warmup_steps=settings.warmup_steps, total_steps=settings.steps, decay="cosine")
    set_learning_rate(state.optimizer, factor)
    sums = distillation.losses(dense_feature, pad_to_common_size(batch), step)
    # Data parallelism averages the ranks' gradients, but these losses are parts of a sum.
    (world_size() * torch.stack(list(sums.values())).sum() / num_boxes).backward()
    total = sum_over_ranks(torch.stack(list(sums.values())).detach()) / num_boxes
    losses = dict(zip(sums, total, strict=True))
    norm = gradient_norm(distillation.student.parameters())
    losses_and_norm = step_if_finite(state.optimizer, losses, norm, max_norm=settings.clip_norm)
    state.optimizer.zero_grad()
    by_name = check_finite(losses, losses_and_norm, batch.image_ids)
    log.train(step + 1, by_name, lr=settings.learning_rate * factor, num_images=num_images)
