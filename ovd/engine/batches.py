"""Iterators over the batches of a training: counting of samples, stop requests, and the first batch with images."""

from collections.abc import Iterator

import torch

from ovd.data.report import DataError, DataReport
from ovd.distributed import on_any_rank, raise_on_all_ranks, raise_together, sum_over_ranks
from ovd.engine.checkpoint_writer import CheckpointWriter
from ovd.engine.signals import StopRequest
from ovd.engine.step import pad_to_common_size
from ovd.structures import Batch


def count_samples(
    batches: Iterator[Batch], report: DataReport, num_samples: int, checkpoints: CheckpointWriter
) -> Iterator[Batch]:
    """Yield the batches and count their samples in this rank's report, which is written when a sample was left out.

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
    """Yield the batches, the same number on every rank, until a stop is requested on any rank.

    The signal that requests it may also kill loader workers; their error is then ignored.
    """
    of_all = raise_together(batches)
    try:
        while not on_any_rank(stop.received) and (batch := next(of_all, None)) is not None:
            yield batch
    except (RuntimeError, OSError):  # an OSError on one rank is a RuntimeError on the others (`raise_on_all_ranks`)
        if not on_any_rank(stop.received):
            raise


def first_nonempty_batch(batches: Iterator[Batch], num_samples: int) -> Batch:
    """Return this rank's part of the first batch in which any rank has a readable image.

    Raises:
        DataError: too many images cannot be read, or none can.
    """
    report = DataReport()
    for batch in raise_together(batches):
        if int(sum_over_ranks(torch.tensor(len(batch.image_ids)))):
            return pad_to_common_size(batch)
        with raise_on_all_ranks():
            report.add_batch(batch)
            report.raise_if_too_many(num_samples)
    raise DataError("F9", f"no image could be read; the last errors: {'; '.join(map(str, batch.skipped[:3]))}")
