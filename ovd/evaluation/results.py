"""Detections of a whole data set as columns: capped, read and written.

The file format is COCO's results format: a list of `{"image_id", "category_id", "bbox": [x, y, width, height],
"score"}`. Boxes stay xywh float64 here, as the format and the metric engines have them, so that a results file and the
detections it was written from give the same figures to the last bit.
"""

import codecs
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ovd.data.formats.coco_records import whole_number_of
from ovd.files import GZIP, atomic_write
from ovd.shapes import Bool, Float64, Int64


@dataclass(frozen=True)
class Results:
    """N detections of any number of images. Rows keep the order they came in: equal scores are ranked by it."""

    image_ids: Int64[np.ndarray, " N"]
    category_ids: Int64[np.ndarray, " N"]
    """Category ids of the annotation file, not rows of a vocabulary."""
    boxes_xywh: Float64[np.ndarray, "N 4"]
    scores: Float64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Int64[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> "Results":
        """The rows that an index or a mask picks."""
        return Results(self.image_ids[rows], self.category_ids[rows], self.boxes_xywh[rows], self.scores[rows])


def concatenate(parts: Collection[Results]) -> Results:
    """One `Results` of many, in their order; of none, an empty one."""
    if len(parts) == 1:
        return next(iter(parts))
    if not parts:
        return Results(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
    return Results(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.boxes_xywh for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def limit_per_image(results: Results, limit: int) -> Results:
    """Each image's `limit` best detections over all classes; ties go to the earlier row, as in lvis-api."""
    return _best_of_each(results.image_ids, results, limit)


def limit_per_class(results: Results, limit: int) -> Results:
    """Each class's `limit` best detections over the whole data set (fixed AP, arXiv:2102.01066, section 4.2)."""
    return _best_of_each(results.category_ids, results, limit)


def _best_of_each(groups: Int64[np.ndarray, " N"], results: Results, limit: int) -> Results:
    """Every group's `limit` highest scores, in the order of their rows."""
    _, counts = np.unique(groups, return_counts=True)
    if counts.max(initial=0) <= limit:  # as in most results files, and many times faster than to sort
        return results
    order = np.lexsort((-results.scores, groups))  # stable: equal scores stay in row order
    ordered = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return results.take(np.sort(order[rank < limit]))


def load_results(path: Path) -> Results:
    """Reads a file in COCO results format; keys other than the four are not looked at.

    Values are judged by whoever evaluates them; here only their types are.

    Raises:
        ValueError: not there, not JSON, not a list, or a record lacks a key or has a wrong type; names file and record.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(f"{path}: results file cannot be read ({error.strerror or error})") from error
    try:
        decoder = msgspec.json.Decoder(list[_Record])
        return concatenate([_columns(decoder.decode(piece)) for piece in _pieces(content)])
    except (msgspec.MsgspecError, OverflowError, RecursionError):
        return _load_with_care(path, content)  # slowly, by what can say which record is at fault


_PIECE_BYTES = 2**16
_SECOND_LINE = re.compile(rb"\s*\{[^\n]*\}\s*\n\s*\{")
_BETWEEN_RECORDS = re.compile(rb"(?<=\})[ \t\r\n]*,[ \t\r\n]*(?=\{)")


def _pieces(content: bytes) -> Iterator[bytes]:
    """The list of a file as many short lists, whose records fit into the processor's cache: they take half the time.

    Should one end inside a record, where a text or another list looks like the end of one, then it is no JSON, since
    what is open there is never closed.
    """
    start, opening = 0, b""
    while between := _BETWEEN_RECORDS.search(content, start + _PIECE_BYTES):
        yield opening + content[start : between.start()] + b"]"
        start, opening = between.end(), b"["
    yield opening + content[start:]


class _Record(msgspec.Struct, gc=False):
    """A record of the file; msgspec checks the types, and is as strict as `_record_problem`."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def _columns(records: list[_Record]) -> Results:
    num = len(records)
    boxes = chain.from_iterable(map(attrgetter("bbox"), records))
    return Results(
        image_ids=np.fromiter(map(attrgetter("image_id"), records), np.int64, num),
        category_ids=np.fromiter(map(attrgetter("category_id"), records), np.int64, num),
        boxes_xywh=np.fromiter(boxes, np.float64, 4 * num).reshape(num, 4),
        scores=np.fromiter(map(attrgetter("score"), records), np.float64, num),
    )


def _load_with_care(path: Path, content: bytes) -> Results:
    """`load_results` record by record; NaN and infinity, which JSON does not have, and ids as text are read."""
    if content.startswith(GZIP):
        raise ValueError(f"{path}: compressed by gzip; unpack it first (gunzip)")
    try:
        records = json.loads(content)
    except ValueError as error:
        hint = "; a record in each line is not one list" if _SECOND_LINE.match(content) else ""
        raise ValueError(f"{path}: not valid JSON: {error}{hint}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: JSON nested too deeply") from error
    if not isinstance(records, list):
        is_document = isinstance(records, dict) and "annotations" in records
        raise ValueError(
            f"{path}: a results file is a list of records, this one is a "
            + ("COCO document: give the list of its annotations, with image and category ids of the annotation file"
               if is_document else type(records).__name__)
        )  # fmt: skip

    image_ids = np.empty(len(records), np.int64)
    category_ids = np.empty(len(records), np.int64)
    boxes = np.empty((len(records), 4))
    scores = np.empty(len(records))
    for index, record in enumerate(records):
        if type(record) is dict:  # ids as 7.0 or "7", which annotation files may have, too
            record |= {key: whole_number_of(record[key]) for key in ("image_id", "category_id") if key in record}
        problem = _record_problem(record)
        if problem:
            raise ValueError(f"{path}: record {index}: {problem}")
        try:
            image_ids[index] = record["image_id"]
            category_ids[index] = record["category_id"]
            boxes[index] = record["bbox"]
            scores[index] = record["score"]
        except OverflowError as error:
            raise ValueError(f"{path}: record {index}: a number has too many digits: {record}") from error
    return Results(image_ids, category_ids, boxes, scores)


def _record_problem(record: Any) -> str | None:
    """What is wrong with one record's keys and types. Exact types: numpy would read "0.9" and true as numbers."""
    if type(record) is not dict:
        return f"is a {type(record).__name__}, not an object"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in record]
    if missing:
        return f"has no {', '.join(missing)}"
    for key in ("image_id", "category_id"):
        if type(record[key]) is not int:
            return f"{key} {record[key]!r} is not an integer"
    box = record["bbox"]
    if type(box) is not list or len(box) != 4 or any(type(value) not in (int, float) for value in box):
        return f"bbox {box!r} is not [x, y, width, height]"
    if type(record["score"]) not in (int, float):
        return f"score {record['score']!r} is not a number"
    return None


def write_results(path: Path, results: Results) -> None:
    """Writes COCO results format, one record a line. The file appears whole or not at all."""
    with atomic_write(path) as file:
        file.write("[")
        separator = "\n"
        columns = (results.image_ids, results.category_ids, results.boxes_xywh, results.scores)
        for start in range(0, len(results), 10_000):  # Python numbers of a slice only, not of the whole data set
            part = (column[start : start + 10_000].tolist() for column in columns)
            for image_id, category_id, box, score in zip(*part, strict=True):
                record = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
                file.write(separator + json.dumps(record, allow_nan=False))
                separator = ",\n"
        file.write("\n]\n")
