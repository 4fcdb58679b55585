"""Images of image-text pairs, decoded ahead of the teacher and counted; the job stops if too many cannot be read."""

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
    "repair or remove these samples and rebuild shards and manifest (ovd check pairs counts them all), or continue "
    "without them: --skip-unreadable"
)


@dataclass(frozen=True)
class DecodedPair:
    """A pair's decoded image, or the reason why it cannot be read."""

    key: str
    pixels: UInt8[np.ndarray, "H W 3"] | None
    reason: Fault | None


def decode_ahead(shards: PairShards, num_ahead: int) -> Iterator[DecodedPair]:
    """Yield all pairs in order, up to `num_ahead` of them decoded by a thread while the teacher works."""

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
    """Yield batches of decoded pairs, each from one shard, and count their images.

    Args:
        num_pairs: number of pairs of the job, including those labeled before.

    Raises:
        DataError: too many images cannot be read.
    """
    for name in shards.file_names:
        of_shard = islice(decoded, len(shards.positions(name)))
        while batch := list(islice(of_shard, size)):
            for item in batch:
                count_image(report, f"{name}:{item.key}", item.reason)
            stop_if_too_many_unreadable(report, num_pairs, shards.directory)
            yield batch


def count_image(report: DataReport, where: str, reason: Fault | None) -> None:
    """Count an image as used, or as skipped if there is a reason.

    Args:
        where: location of the image in the report, such as `shard:key`.
    """
    if reason is None:
        report.count_used()
    else:
        report.count_skipped(*reason.at(where))


def stop_if_too_many_unreadable(report: DataReport, num_pairs: int, folder: Path) -> None:
    """Stop the job, with advice, if too many images of a folder's pairs cannot be read.

    Raises:
        DataError: as `DataReport.raise_if_too_many`.
    """
    if (error := report.too_many(num_pairs)) is not None:
        report.stop(DataError(error.code, f"{folder}: {error}; {_REMEDY}"))
