"""Align a backbone in one explicit loop: load, find boxes, ask CLIP about their crops, step, save.

Under torchrun every rank runs the loop on its part of each batch; losses, gradients and checkpoints are those of the
whole batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovd.alignment.boxes import boxes_of_step
from ovd.alignment.distill import DenseFeature, distillation_losses
from ovd.alignment.images import UnlabelledImages
from ovd.alignment.proposals import Proposals
from ovd.config.alignment import AlignConfig, AlignSection
from ovd.data.loading.loader import image_loader, train_loader
from ovd.data.loading.order import TrainOrder
from ovd.data.loading.transforms import augmenting_transform
from ovd.data.report import DataError, DataReport
from ovd.distributed import (
    data_parallel,
    device_of_rank,
    failing_together,
    pins_memory,
    rank,
    sum_over_ranks,
    world_size,
)
from ovd.engine import checkpoint
from ovd.engine.batches import counted, until_stopped
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
from ovd.engine.step import of_one_size
from ovd.engine.train_state import TrainState
from ovd.model.backbone import Backbone
from ovd.model.crop_encoder import CropEncoder
from ovd.precision import Compute
from ovd.structures import Batch

MIN_IMAGES_TO_HOLD_OUT = 100
"""In a smaller set every image is trained on."""
_HELD_OUT_STREAM = 2**32
"""Added to the number of a batch of held-out images: its boxes differ from those of any step."""


@dataclass(frozen=True)
class AlignmentData:
    """The batches of an alignment."""

    batches_from: Callable[[int], Iterator[Batch]]
    """The batches from a step on, as a pure function of the step."""
    held_out: Callable[[], Iterator[Batch]]
    """Batches of images that are not trained on; of a small set, of those that are."""
    num_images: int
    """Number of images trained on."""
    num_held_out: int
    """Number of images not trained on."""
    report: DataReport
    """Counts of the images that were used and left out."""


def alignment_data(
    images: UnlabelledImages, config: AlignConfig, report: DataReport, *, size_divisor: int
) -> AlignmentData:
    """Split the images into those to train on and those to measure on, and load this rank's part of their batches.

    Args:
        size_divisor: divisor of the padded image sides.

    Raises:
        ValueError: the batch size cannot be divided among the ranks.
    """
    data, train = config.data, config.train
    num_held_out = min(train.held_out, len(images) // 10) if len(images) >= MIN_IMAGES_TO_HOLD_OUT else 0
    is_held_out = np.zeros(len(images), dtype=bool)
    is_held_out[np.linspace(0, len(images) - 1, num_held_out).round().astype(np.int64)] = True
    trained = images.take(np.flatnonzero(~is_held_out))
    measured = images.take(np.flatnonzero(is_held_out)) if num_held_out else images
    augment = augmenting_transform(data, size=data.size)
    pin_memory = pins_memory(device_of_rank(train.device))
    order = TrainOrder(
        num_images=len(trained), repeat=np.ones(len(trained)), seed=train.seed, batch_size=train.batch_size
    )

    def load_trained(start: int) -> Iterator[Batch]:
        return train_loader(
            trained,
            order,
            augment,
            range(start, train.steps),
            workers=data.workers,
            part=(rank(), world_size()),
            size_divisor=size_divisor,
            pin_memory=pin_memory,
        )

    def load_measured() -> Iterator[Batch]:
        positions = range(min(len(measured), train.held_out))
        batches = [positions[first : first + train.batch_size] for first in positions[:: train.batch_size]]
        return image_loader(
            measured,
            [batch[rank() :: world_size()] for batch in batches],
            size=data.size,
            workers=data.workers,
            size_divisor=size_divisor,
            pin_memory=pin_memory,
        )

    return AlignmentData(
        load_trained,
        load_measured,
        num_images=len(trained),
        num_held_out=num_held_out,
        report=report,
    )


class Distillation:
    """A student backbone, its frozen teacher, and how a batch of images becomes a loss."""

    def __init__(
        self,
        student: Backbone,
        teacher: CropEncoder,
        proposals: Proposals | None,
        config: AlignConfig,
        compute: Compute,
    ):
        """
        Args:
            student: trained in place; moved to the device.
            teacher: CLIP on crops; on the same device.
            proposals: finds boxes where an object may be; without it all boxes are random.
        """
        self.config = config
        self.compute = compute
        self.student = compute.place(student).train()
        self._teacher = teacher
        self._proposals = proposals
        self.size_divisor = math.lcm(student.size_divisor, 1 if proposals is None else proposals.size_divisor)

    def losses(self, dense_feature: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        """Sums of the losses over the boxes of a batch; sums over ranks are those of the whole batch.

        Args:
            dense_feature: the student's (`DenseFeature`), wrapped if there are several ranks.
            number: of the step, which the random boxes depend on.
        """
        batch = batch.to(self.compute.device)
        boxes = self._boxes(batch, number)
        pixels = self._teacher.normalization(batch.images)
        targets = torch.cat(self._teacher(batch.images, batch.sizes, boxes))
        with self.compute.autocast():
            dense = dense_feature(pixels.contiguous(memory_format=self.compute.memory_format))
        return distillation_losses(dense, boxes, targets, self.student.strides[-1])

    def num_boxes(self, batch: Batch) -> int:
        """Number of boxes of a batch on this rank."""
        return len(batch.image_ids) * (self.config.boxes.random + self.config.boxes.proposals)

    @torch.no_grad()
    def measure(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Mean of 1 - cosine over the boxes of images, at their centres (`point`) and over them (`box`).

        The student is in eval mode meanwhile.

        Raises:
            DataError: none of the images can be read.
        """
        drops_paths = self.student.drops_paths
        self.student.eval()
        try:
            return self._measure(batches)
        finally:
            self.student.train(drops_paths)

    def _measure(self, batches: Iterator[Batch]) -> dict[str, float]:
        dense_feature = DenseFeature(self.student)
        totals, count = torch.zeros(2, dtype=torch.float64), 0
        for number, batch in enumerate(map(of_one_size, batches)):
            if batch.image_ids:
                losses = self.losses(dense_feature, batch, _HELD_OUT_STREAM + number)
                totals += torch.stack([losses["point"], losses["box"]]).cpu().double()
                count += self.num_boxes(batch)
        num_boxes = int(sum_over_ranks(torch.tensor(count)))
        if num_boxes == 0:
            raise DataError("F9", "none of the images to measure on can be read; data_report.json says why")
        point, box = (sum_over_ranks(totals) / num_boxes).tolist()
        return {"point": point, "box": box}

    def _boxes(self, batch: Batch, number: int) -> list[Float[Tensor, "K 4"]]:
        proposals = [torch.zeros(0, 4)] * len(batch.images)
        if self._proposals is not None:
            proposals = self._proposals(batch.images, batch.sizes)
        boxes = boxes_of_step(
            batch.sizes.cpu(),
            batch.image_ids,
            proposals,
            self.config.boxes,
            sides_px=sides_px(self.config),
            seeds=(self.config.train.seed, number),
        )
        return [of_image.to(self.compute.device) for of_image in boxes]


def sides_px(config: AlignConfig) -> tuple[float, float]:
    """Smallest and largest mean side of a box in pixels."""
    smallest, largest = config.boxes.sides
    return smallest * config.data.size, largest * config.data.size


def build_groups(student: Backbone, settings: AlignSection) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: CLIP's trunk, and its pooling and projection."""
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
class Losses:
    """Mean losses of the held-out images, before and after: 1 - cosine with CLIP on the crop."""

    before: dict[str, float]
    after: dict[str, float]


def align(distillation: Distillation, data: AlignmentData, found: checkpoint.Checkpoint | None, notes: Notes) -> Losses:
    """Train the student in place, from its present weights or from a checkpoint of the same run.

    Args:
        notes: for the checkpoints.

    Raises:
        NonFiniteError: a loss or gradient is not finite; no step was taken and nothing saved after it.
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
        before = distillation.measure(_reported(data.held_out(), data.report, checkpoints))
    else:
        if state.step < settings.steps:
            checkpoints.set_report_aside()
        assert found.notes.before is not None
        before = dict(found.notes.before)
    checkpoints.notes = replace(notes, before=before)
    dense_feature = data_parallel(DenseFeature(student), distillation.compute.device)
    with failing_together():
        run_log = open_log(config.output, settings.steps, state.step, None, checkpoints.config)
    with run_log as log, StopRequest() as stop:
        num_left = settings.steps - state.step
        left = counted(islice(data.batches_from(state.step), num_left), data.report, data.num_images, checkpoints)
        for batch in until_stopped(left, stop):
            _take_step(distillation, dense_feature, state, batch, log)
            state.step += 1
            if state.step == settings.steps:
                break
            if state.step % settings.save_every == 0:
                checkpoints.save(state, data.report, must_succeed=False, warning=log.warning)
        if num_left:
            checkpoints.save(state, data.report, must_succeed=True, warning=log.warning)
        if state.step < settings.steps:
            exit_stopped(state.step, log.message)
        after = distillation.measure(data.held_out())
        log.evaluation(settings.steps, {f"held-out {name}": value for name, value in after.items()})
    return Losses(before, after)


def _reported(batches: Iterator[Batch], report: DataReport, checkpoints: CheckpointWriter) -> Iterator[Batch]:
    """The batches, whose samples the report counts; it is written at their end."""
    for batch in batches:
        report.add_batch(batch)
        yield batch
    checkpoints.write_report(report)


def _take_step(
    distillation: Distillation, dense_feature: nn.Module, state: TrainState, batch: Batch, log: RunLog | NoLog
) -> None:
    """One optimizer step; none where no image of the batch can be read, on any rank."""
    settings, step = distillation.config.train, state.step
    num_images, num_boxes = sum_over_ranks(torch.tensor([len(batch.image_ids), distillation.num_boxes(batch)])).tolist()
    if num_images == 0:
        log.message(f"step {step}: every image was skipped ({batch.skipped[0]}); no optimizer step")
        return
    factor = learning_rate_factor(step, warmup_steps=settings.warmup_steps, total_steps=settings.steps, decay="cosine")
    set_learning_rate(state.optimizer, factor)
    sums = distillation.losses(dense_feature, of_one_size(batch), step)
    # Data parallelism averages the ranks' gradients, but these losses are parts of a sum.
    (world_size() * torch.stack(list(sums.values())).sum() / num_boxes).backward()
    total = sum_over_ranks(torch.stack(list(sums.values())).detach()) / num_boxes
    losses = dict(zip(sums, total, strict=True))
    norm = gradient_norm(distillation.student.parameters())
    numbers = step_if_finite(state.optimizer, losses, norm, max_norm=settings.clip_norm)
    state.optimizer.zero_grad()
    by_name = check_finite(losses, numbers, batch.image_ids)
    log.train(step + 1, by_name, lr=settings.learning_rate * factor, num_images=num_images)
