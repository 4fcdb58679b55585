"""Reading and writing of results files, which hold the detections of a whole data set.

The format is COCO's results format: a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
Large files are read by several processes, one part each.
"""

import codecs
import json
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ovd.data.formats.coco_records import whole_number_of
from ovd.evaluation.results import Results, concatenate
from ovd.files import GZIP, atomic_write
from ovd.threads import num_cores

_PROCESS_BYTES = 2**24
"""Minimum size of a part, so that a file of less than two parts is read by one process."""
_PIECE_BYTES = 2**16
_JSON_LINES = re.compile(rb"\s*\{[^\n]*\}\s*\n\s*\{")
_BETWEEN_RECORDS = re.compile(rb"(?<=\})[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_PARSE_ERRORS = (msgspec.MsgspecError, OverflowError, RecursionError)


def load_results(path: Path) -> Results:
    """Load detections from a file in COCO results format; keys other than the four are ignored.

    Only the types of the values are checked here; the evaluator checks the values.

    Raises:
        ValueError: the file is missing, not JSON or not a list, or a record lacks a key or has a value of a wrong type;
            names file and record.
        RuntimeError: a process that read a part of the file was killed.
    """
    with results_loader(path) as results:
        return results()


@contextmanager
def results_loader(path: Path) -> Iterator[Callable[[], Results]]:
    """Read a large results file in other processes while the block runs, at most one part per core.

    Yields a function that reads the first part itself, waits for the other parts and returns all detections; it raises
    the errors of `load_results`.
    """
    size = path.stat().st_size if path.is_file() else 0
    own, *others = _divide(path, size, min(num_cores(), size // _PROCESS_BYTES))
    if not others:
        yield lambda: _load_whole(path)
        return
    # Forked processes need not import the modules again, and they need no lock that another thread may hold.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(others), context, _prepare_process) as pool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about forking a process with threads
            loading = [pool.submit(_load_part, path, part) for part in others]

        def results() -> Results:
            try:
                return concatenate([_load_part(path, own), *(part.result() for part in loading)])
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"{path}: a process that read a part of the file was killed, possibly for lack of memory"
                ) from error
            except (OSError, *_PARSE_ERRORS):
                return _load_whole(path)  # its error names the file and the record

        yield results


def _prepare_process() -> None:
    """Ignore Ctrl-C, which the waiting parent process handles, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    """Wait for the end of the parent process and exit; a pool's process would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Part(NamedTuple):
    """A range of bytes of a file that is a JSON list of records between `opening` and `closing`."""

    start: int
    end: int
    opening: bytes
    closing: bytes


def _divide(path: Path, size: int, num_parts: int) -> list[_Part]:
    """Divide a file into at most `num_parts` parts of about the same size; at least one."""
    cuts = set()
    for number in range(1, num_parts):
        place = size * number // num_parts
        with path.open("rb") as file:
            file.seek(place)
            between = _BETWEEN_RECORDS.search(file.read(_PIECE_BYTES))
        if between:
            cuts.add((place + between.start(), place + between.end()))
    ends, starts = zip(*sorted(cuts), strict=True) if cuts else ((), ())
    openings, closings = (b"", *[b"["] * len(cuts)), (*[b"]"] * len(cuts), b"")
    return list(map(_Part, (0, *starts), (*ends, size), openings, closings))


def _load_part(path: Path, part: _Part) -> Results:
    with path.open("rb") as file:
        file.seek(part.start)
        content = file.read(part.end - part.start)
    return _parse(content, part.opening, part.closing)


def _load_whole(path: Path) -> Results:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the results file cannot be read ({error.strerror or error})") from error
    try:
        return _parse(content)
    except _PARSE_ERRORS:
        # Slow, but its error names the record.
        return _load_record_by_record(path, content.removeprefix(codecs.BOM_UTF8))


def _parse(content: bytes, opening: bytes = b"", closing: bytes = b"") -> Results:
    """Parse a list of records that is complete between `opening` and `closing`."""
    decoder = msgspec.json.Decoder(list[_Record])
    pieces = _pieces(content.removeprefix(codecs.BOM_UTF8), opening, closing)
    return concatenate([_columns(decoder.decode(piece)) for piece in pieces])


def _pieces(content: bytes, opening: bytes, closing: bytes) -> Iterator[bytes]:
    """Yield a list of records as many short lists, whose records fit into the processor's cache: half the time.

    A piece that ends inside a record, where a string or a nested list looks like the end of a record, is not valid
    JSON, since the string or the record is never closed.
    """
    start = 0
    while between := _BETWEEN_RECORDS.search(content, start + _PIECE_BYTES):
        yield opening + content[start : between.start()] + b"]"
        start, opening = between.end(), b"["
    yield opening + content[start:] + closing


class _Record(msgspec.Struct, gc=False):
    """A record of the file; msgspec checks its types as strictly as `_record_problem`."""

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


def _load_record_by_record(path: Path, content: bytes) -> Results:
    """Load results record by record, including NaN, infinity (which JSON lacks) and ids written as 7.0 or "7"."""
    if content.startswith(GZIP):
        raise ValueError(f"{path}: the file is compressed with gzip; unpack it first (gunzip)")
    try:
        records = json.loads(content)
    except ValueError as error:
        hint = "; the file has a record in each line, but must be one JSON list" if _JSON_LINES.match(content) else ""
        raise ValueError(f"{path}: invalid JSON: {error}{hint}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: the JSON is nested too deeply") from error
    if not isinstance(records, list):
        is_document = isinstance(records, dict) and "annotations" in records
        raise ValueError(
            f"{path}: a results file must be a list of records; this one is a "
            + ("COCO document; give only the list of its annotations, with the ids of the annotation file"
               if is_document else type(records).__name__)
        )  # fmt: skip

    image_ids = np.empty(len(records), np.int64)
    category_ids = np.empty(len(records), np.int64)
    boxes = np.empty((len(records), 4))
    scores = np.empty(len(records))
    for index, record in enumerate(records):
        if type(record) is dict:  # annotation files may have ids as 7.0 or "7", too
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
    """Describe what is wrong with a record's keys or types; None if nothing is.

    Types must match exactly, since numpy would read "0.9" and true as numbers.
    """
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
    """Write detections in COCO results format, one record per line. The file appears whole or not at all."""
    with atomic_write(path) as file:
        file.write("[")
        separator = "\n"
        columns = (results.image_ids, results.category_ids, results.boxes_xywh, results.scores)
        for start in range(0, len(results), 10_000):  # one slice at a time as Python numbers, to save memory
            part = (column[start : start + 10_000].tolist() for column in columns)
            for image_id, category_id, box, score in zip(*part, strict=True):
                record = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
                file.write(separator + json.dumps(record, allow_nan=False))
                separator = ",\n"
        file.write("\n]\n")
