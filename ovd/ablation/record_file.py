"""The file of the records of finished runs, one JSON object per line; safe with killed and concurrent writers."""

import fcntl
import os
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ovd.format_count import format_count
from ovd.warn import warn

RECORD_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Pydantic config of record classes: values are checked when a record is created, not hours later by a table."""

RecordType = TypeVar("RecordType")


def append_record(path: Path, record: object) -> None:
    """Append a record as a line and flush it to the disk; any number of processes may append to the same file.

    A last line that was torn by a kill is removed first, since it would be an error once another line follows.

    Args:
        record: a pydantic dataclass.

    Raises:
        OSError: the line could not be written completely; the file keeps the records that it had.
    """
    line = TypeAdapter(type(record)).dump_json(record) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process must not append between reading the end and writing
        content = os.pread(file, os.fstat(file).st_size, 0)
        end = content.rfind(b"\n") + 1
        if _is_torn(content[end:], type(record)):
            warn(f"{path}: removed an incomplete last line of {format_count(len(content) - end, 'byte')}")
            os.ftruncate(file, end)
        elif content[end:]:  # complete, but an editor removed its line end
            end = len(content)
            line = b"\n" + line
        written = os.write(file, line)
        if written < len(line):
            os.ftruncate(file, end)
            raise OSError(f"{path}: only {written} of {len(line)} bytes were written; the disk may be full")
        os.fsync(file)
    finally:
        os.close(file)


def read_records(path: Path, kind: type[RecordType]) -> list[RecordType]:
    """Read all records in the file's order; none if there is no file. A torn last line is dropped with a warning.

    Args:
        kind: class of the records, a pydantic dataclass.

    Raises:
        ValueError: a line is not a record, or has missing, unknown or wrong fields; names file, line and field.
    """
    if not path.is_file():
        return []
    adapter = TypeAdapter(kind)
    *lines, last = path.read_bytes().split(b"\n")
    if _is_torn(last, kind):
        warn(f"{path}, line {len(lines) + 1}: left out, since it is incomplete ({format_count(len(last), 'byte')})")
    elif last:
        lines.append(last)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(adapter.validate_json(line))
        except ValidationError as error:
            problems = "; ".join(" ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors())
            raise ValueError(f"{path}, line {number}: {problems}; repair the line or move the file away") from error
    return records


def _is_torn(last: bytes, kind: type) -> bool:
    """Whether the bytes after the last line end are an incomplete line, whose writer was killed."""
    if not last:
        return False
    try:
        TypeAdapter(kind).validate_json(last)
    except ValidationError as error:
        return any(fault["type"] == "json_invalid" for fault in error.errors())
    return False
