"""Self-distillation of a backbone: the student, its frozen teacher, and the losses of a batch of images."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovd.alignment.boxes import sample_boxes
from ovd.alignment.losses import DenseFeature, distillation_losses
from ovd.alignment.proposals import Proposals
from ovd.config.alignment import AlignConfig
from ovd.data.report import DataError
from ovd.distributed import (
    sum_over_ranks,
)
from ovd.engine.step import pad_to_common_size
from ovd.model.backbone import Backbone
from ovd.model.crop_encoder import CropEncoder
from ovd.precision import Compute
from ovd.structures import Batch

_HELD_OUT_OFFSET = 2**32
"""Number added to that of a held-out batch, so that its random boxes differ from those of every step."""


class Distillation:
    """A student backbone and its frozen teacher, with the losses of a batch of images."""

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
            student: backbone that is trained in place and moved to the device.
            teacher: CLIP's encoder of crops, on the same device.
            proposals: finds boxes where an object may be; None makes all boxes random.
        """
        self.config = config
        self.compute = compute
        self.student = compute.place(student).train()
        self._teacher = teacher
        self._proposals = proposals
        self.size_divisor = math.lcm(student.size_divisor, 1 if proposals is None else proposals.size_divisor)

    def losses(self, dense_feature: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        """Compute the sums of the losses over the boxes of a batch; sums over ranks are those of the whole batch.

        Args:
            dense_feature: the student's `DenseFeature`, wrapped for data parallelism if there are several ranks.
            number: number of the step, which the random boxes depend on.
        """
        batch = batch.to(self.compute.device)
        boxes = self._boxes(batch, number)
        pixels = self._teacher.normalization(batch.images)
        targets = torch.cat(self._teacher(batch.images, batch.sizes, boxes))
        with self.compute.autocast():
            dense = dense_feature(pixels.contiguous(memory_format=self.compute.memory_format))
        return distillation_losses(dense, boxes, targets, self.student.strides[-1])

    def num_boxes(self, batch: Batch) -> int:
        """Return the number of boxes of a batch on this rank."""
        return len(batch.image_ids) * (self.config.boxes.random + self.config.boxes.proposals)

    @torch.no_grad()
    def measure(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Compute the mean of 1 - cosine over the boxes of images, at their centers (`point`) and over them (`box`).

        The student is in eval mode during the measurement.

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
        for number, batch in enumerate(map(pad_to_common_size, batches)):
            if batch.image_ids:
                losses = self.losses(dense_feature, batch, _HELD_OUT_OFFSET + number)
                totals += torch.stack([losses["point"], losses["box"]]).cpu().double()
                count += self.num_boxes(batch)
        num_boxes = int(sum_over_ranks(torch.tensor(count)))
        if num_boxes == 0:
            raise DataError("F9", "none of the held-out images can be read; data_report.json says why")
        point, box = (sum_over_ranks(totals) / num_boxes).tolist()
        return {"point": point, "box": box}

    def _boxes(self, batch: Batch, number: int) -> list[Float[Tensor, "K 4"]]:
        proposals = [torch.zeros(0, 4)] * len(batch.images)
        if self._proposals is not None:
            proposals = self._proposals(batch.images, batch.sizes)
        boxes = sample_boxes(
            batch.sizes.cpu(),
            batch.image_ids,
            proposals,
            self.config.boxes,
            sides_px=sides_px(self.config),
            seeds=(self.config.train.seed, number),
        )
        return [of_image.to(self.compute.device) for of_image in boxes]


def sides_px(config: AlignConfig) -> tuple[float, float]:
    """Return the smallest and the largest mean side of a box in pixels."""
    smallest, largest = config.boxes.sides
    return smallest * config.data.size, largest * config.data.size
