"""Images of image-text pairs, decoded ahead of the teacher and counted: too many that cannot be read stop the job."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ovd.data.images.image_file import ImageError
from ovd.data.images.read import read_image
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataError, DataReport
from ovd.fault import Fault
from ovd.threads import map_ahead

_REMEDY = (
    "repair or remove these samples, and write shards and manifest anew (ovd check pairs counts them all), or go on "
    "without them: --skip-unreadable"
)


@dataclass(frozen=True)
class DecodedPair:
    """A pair's image, or the reason why there is none."""

    key: str
    pixels: UInt8[np.ndarray, "H W 3"] | None
    reason: Fault | None


def decode_ahead(shards: PairShards, num_ahead: int) -> Iterator[DecodedPair]:
    """All pairs in order, decoded by a thread while the teacher processes the previous ones."""

    def decode(position: int) -> DecodedPair:
        key = shards.key(position)
        try:
            return DecodedPair(key, read_image(shards.image(position)), None)
        except ImageError as error:
            return DecodedPair(key, None, error.fault)

    return map_ahead(decode, range(len(shards)), threads=1, ahead=num_ahead)


def batches_of_shards(
    decoded: Iterator[DecodedPair], shards: PairShards, size: int, report: DataReport, num_pairs: int
) -> Iterator[list[DecodedPair]]:
    """Batches of decoded pairs, each of one shard, whose images are counted.

    Args:
        num_pairs: number of pairs in all, including those labelled before.

    Raises:
        DataError: too many images cannot be read.
    """
    for name in shards.file_names:
        of_shard = islice(decoded, len(shards.positions(name)))
        while batch := list(islice(of_shard, size)):
            for item in batch:
                count_image(report, f"{name}:{item.key}", item.reason)
            stop_if_too_many(report, num_pairs, shards.directory)
            yield batch


def count_image(report: DataReport, where: str, reason: Fault | None) -> None:
    """Count an image as used, or as skipped for a reason.

    Args:
        where: it is, for the report.
    """
    if reason is None:
        report.used()
    else:
        report.skipped(*reason.at(where))


def stop_if_too_many(report: DataReport, num_pairs: int, folder: Path) -> None:
    """Stop where too many images of a folder's pairs cannot be read, and say what to do.

    Raises:
        DataError: as `DataReport.raise_if_too_many`.
    """
    if (error := report.too_many(num_pairs)) is not None:
        report.stop(DataError(error.code, f"{folder}: {error}; {_REMEDY}"))
