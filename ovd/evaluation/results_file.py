"""Detections of a whole data set in a file, read and written.

The format is COCO's results format: a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
Large files are read by several processes, a part each.
"""

import codecs
import json
import multiprocessing
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
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ovd.data.formats.coco_records import whole_number_of
from ovd.evaluation.results import Results, concatenate
from ovd.files import GZIP, atomic_write
from ovd.threads import num_cores

_PROCESS_BYTES = 2**24
"""For less than this no process is started."""
_PIECE_BYTES = 2**16
_SECOND_LINE = re.compile(rb"\s*\{[^\n]*\}\s*\n\s*\{")
_BETWEEN_RECORDS = re.compile(rb"(?<=\})[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_FAULTS = (msgspec.MsgspecError, OverflowError, RecursionError)


def load_results(path: Path) -> Results:
    """Reads a file in COCO results format; keys other than the four are not looked at.

    Values are judged by whoever evaluates them; here only their types are.

    Raises:
        ValueError: not there, not JSON, not a list, or a record lacks a key or has a wrong type; names file and record.
        RuntimeError: a process that read a part of it was killed.
    """
    with reading_results(path) as results:
        return results()


@contextmanager
def reading_results(path: Path) -> Iterator[Callable[[], Results]]:
    """A block beside which other processes read all parts of a large file but one, one part for each core.

    It is given a function that reads that part, waits for the others, and raises what `load_results` does.
    """
    size = path.stat().st_size if path.is_file() else 0
    own, *others = _divide(path, size, min(num_cores(), size // _PROCESS_BYTES))
    if not others:
        yield lambda: _load_whole(path)
        return
    # Forked, since others would import anew what is there already; they need no lock that another thread may hold.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(others), context, _ignore_interrupts) as pool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            loading = [pool.submit(_load_part, path, part) for part in others]

        def results() -> Results:
            try:
                return concatenate([_load_part(path, own), *(part.result() for part in loading)])
            except BrokenProcessPool as error:
                raise RuntimeError(f"{path}: a process that read a part of it was killed (out of memory?)") from error
            except (OSError, *_FAULTS):
                return _load_whole(path)  # which says what is at fault

        yield results


def _ignore_interrupts() -> None:
    """Leave the keyboard to the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Part(NamedTuple):
    """Bytes of a file that are a list of records once they are between these."""

    start: int
    end: int
    opening: bytes
    closing: bytes


def _divide(path: Path, size: int, num_parts: int) -> list[_Part]:
    """At most this many parts of about the same size, and one at least."""
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
        raise ValueError(f"{path}: results file cannot be read ({error.strerror or error})") from error
    try:
        return _parse(content)
    except _FAULTS:
        return _load_with_care(path, content.removeprefix(codecs.BOM_UTF8))  # slowly; it says which record is at fault


def _parse(content: bytes, opening: bytes = b"", closing: bytes = b"") -> Results:
    """The detections of a list of records, once it is between these."""
    decoder = msgspec.json.Decoder(list[_Record])
    pieces = _pieces(content.removeprefix(codecs.BOM_UTF8), opening, closing)
    return concatenate([_columns(decoder.decode(piece)) for piece in pieces])


def _pieces(content: bytes, opening: bytes, closing: bytes) -> Iterator[bytes]:
    """The list as many short lists, whose records fit into the processor's cache: they take half the time.

    Should one end inside a record, where a text or another list looks like the end of one, then it is no JSON, since
    what is open there is never closed.
    """
    start = 0
    while between := _BETWEEN_RECORDS.search(content, start + _PIECE_BYTES):
        yield opening + content[start : between.start()] + b"]"
        start, opening = between.end(), b"["
    yield opening + content[start:] + closing


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
