"""The batches of a training loop: counted, of all ranks together, and ended by a signal that kills their workers."""

from collections.abc import Iterator

import torch

from ovd.data.report import DataError, DataReport
from ovd.distributed import failing_together, on_any_rank, sum_over_ranks, together
from ovd.engine.checkpoint_writer import CheckpointWriter
from ovd.engine.signals import StopRequest
from ovd.engine.step import of_one_size
from ovd.structures import Batch


def counted(
    batches: Iterator[Batch], report: DataReport, num_samples: int, checkpoints: CheckpointWriter
) -> Iterator[Batch]:
    """The batches, whose samples are added to this rank's report, which is written where one was left out.

    Raises:
        DataError: too many of the samples were left out.
    """
    for batch in batches:
        report.add_batch(batch)
        if batch.skipped:
            checkpoints.write_report(report)
            report.raise_if_too_many(num_samples)
        yield batch


def until_stopped(batches: Iterator[Batch], stop: StopRequest) -> Iterator[Batch]:
    """The batches, of which every rank has as many, up to a signal to stop, which may kill loader workers, too."""
    of_all = together(batches)
    try:
        while not on_any_rank(stop.received) and (batch := next(of_all, None)) is not None:
            yield batch
    except (RuntimeError, OSError):  # an OSError of one rank is a RuntimeError on the others (`failing_together`)
        if not on_any_rank(stop.received):
            raise


def first_with_images(batches: Iterator[Batch], num_samples: int) -> Batch:
    """The first batch with at least one readable image, on any rank.

    Raises:
        DataError: too many images in a row cannot be read, or all of them.
    """
    report = DataReport()
    for batch in together(batches):
        if int(sum_over_ranks(torch.tensor(len(batch.image_ids)))):
            return of_one_size(batch)
        with failing_together():
            report.add_batch(batch)
            report.raise_if_too_many(num_samples)
    raise DataError("F9", f"no image could be read; the last: {'; '.join(map(str, batch.skipped[:3]))}")
