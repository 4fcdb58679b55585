"""The teacher's results for image-text pairs, and the labels and counts of a shard that are made from them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovd.data.index import Ragged
from ovd.data.report import DataReport
from ovd.fault import Fault
from ovd.selftrain.decoded_pairs import count_image
from ovd.selftrain.labels import ShardLabels, TeacherBoxes
from ovd.selftrain.ledger import LabelCounts

NO_BOXES = TeacherBoxes(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))


@dataclass(frozen=True)
class PairResult:
    """The teacher's result for one pair."""

    key: str
    reason: Fault | None
    """Reason why the pair was not given to the teacher; None if it was."""
    image_size: tuple[int, int]
    """Height and width in pixels; zeros if the image cannot be read."""
    queries: tuple[str, ...]
    found: TeacherBoxes
    """Boxes that are kept, best first."""
    is_capped: bool
    """Whether the teacher found more boxes than are kept."""


def to_labels(results: Sequence[PairResult], texts: tuple[str, ...]) -> ShardLabels:
    """Convert the results for a shard's pairs to its labels.

    Args:
        texts: the distinct queries of the results.
    """
    row = {text: row for row, text in enumerate(texts)}
    queries = [np.array([row[text] for text in result.queries], np.int64) for result in results]
    return ShardLabels(
        keys=tuple(result.key for result in results),
        reasons=tuple(result.reason for result in results),
        image_sizes=np.array([result.image_size for result in results], np.int64).reshape(-1, 2),
        texts=texts,
        queries=_ragged(queries, np.empty(0, np.int64)),
        boxes=_ragged([result.found.boxes for result in results], NO_BOXES.boxes),
        scores=_ragged([result.found.scores for result in results], NO_BOXES.scores),
        box_texts=_ragged(
            [of_one[result.found.texts] for of_one, result in zip(queries, results, strict=True)], NO_BOXES.texts
        ),
    )


def count_results(results: Sequence[PairResult], num_texts: int, num_long_texts: int) -> LabelCounts:
    """Count the pairs, boxes and texts of a shard."""
    num_boxes = [len(result.found.scores) for result in results]
    return LabelCounts(
        pairs=len(results),
        pairs_with_boxes=sum(count > 0 for count in num_boxes),
        capped_pairs=sum(result.is_capped for result in results),
        boxes=sum(num_boxes),
        texts=num_texts,
        long_texts=num_long_texts,
        reasons=dict(sorted(Counter(result.reason.code for result in results if result.reason).items())),
    )


def first_skipped(results: Sequence[PairResult]) -> dict[str, list[str]]:
    """List the first pairs that were not labeled, with their reasons, by the code of the reason."""
    report = DataReport(stops=False)
    for result in results:
        count_image(report, result.key, result.reason)
    return {finding.code: records for finding, records in report.first_records().items()}


def _ragged(arrays: list[np.ndarray], empty: np.ndarray) -> Ragged:
    """Join arrays into one ragged array; `empty` determines shape and dtype if there are none."""
    return Ragged.from_rows(np.concatenate([empty, *arrays]), [len(array) for array in arrays])
