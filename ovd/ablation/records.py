"""Records of the ablation's finished runs, one JSON object per line; missing runs, and the selection for a table."""

import fcntl
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt, TypeAdapter, ValidationError

Metric = Annotated[float, Field(ge=-1, le=1)]
"""A metric, 0 to 1; -1 if there is no true box to measure it on."""


# pydantic's dataclass: values are checked when a record is made, not hours later when a table is made.
@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
)
class Record:
    """The record of one finished run."""

    row: str
    seed: int
    AP: Metric
    """LVIS ordinary box AP over all classes, then over rare, common and frequent ones."""
    APr: Metric
    APc: Metric
    APf: Metric
    coco_AP: Metric
    o365_AP: Metric
    exhaustive_APr: Metric | None = None
    """COCO's AP of rare classes on the exhaustive truth. This and the following are None in early records."""
    rare_named: Metric | None = None
    """Share of true boxes of rare classes, and of base classes, that the detector names right among all names."""
    base_named: Metric | None = None
    cgF1: NonNegativeFloat | None = None
    """Decisions about all classes (evaluation/decisions.py), 0 to 100, and about rare ones; thresholds of base ones."""
    cgF1_rare: NonNegativeFloat | None = None
    IL_MCC: Metric | None = None
    absent_per_image: NonNegativeFloat | None = None
    """Absent classes per image that are reported at the detector's own threshold, or at that of base classes."""
    ece_rare: Metric | None = None
    """Expected calibration error and Brier score of rare classes."""
    brier_rare: Metric | None = None
    hours: NonNegativeFloat
    config_hash: str
    """Hash of the row's config, the same for every seed."""
    steps: PositiveInt
    """Optimizer steps of all stages together."""
    device: str
    instruction_set: str
    versions: dict[str, str]
    """Version by package. Like device and instruction set, it affects the bits of a run."""
    date: str
    extra: dict[str, float] = Field(default_factory=dict)
    """Further metrics by name."""

    @property
    def machine(self) -> str:
        """All that the bits of a run depend on besides its config and seed, in one line."""
        versions = (f"{name} {version}" for name, version in sorted(self.versions.items()))
        return ", ".join([self.device, self.instruction_set, *versions])


_RECORD = TypeAdapter(Record)


def append_record(path: Path, record: Record) -> None:
    """Append a line; on return it is on the disk. Any number of processes may append to one file.

    A last line that was torn by a kill is removed first; followed by another line, it would be an error.

    Raises:
        OSError: the line could not be written whole; the file is unchanged.
    """
    line = _RECORD.dump_json(record) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # no other process may append between reading the end and writing
        content = os.pread(file, os.fstat(file).st_size, 0)
        end = content.rfind(b"\n") + 1
        if _is_torn(content[end:]):
            print(f"warning: {path}: cut off a torn last line of {len(content) - end} bytes", file=sys.stderr)
            os.ftruncate(file, end)
        elif content[end:]:  # whole, but an editor removed its line end
            end = len(content)
            line = b"\n" + line
        written = os.write(file, line)
        if written < len(line):
            os.ftruncate(file, end)
            raise OSError(f"{path}: only {written} of {len(line)} bytes could be written; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def read_records(path: Path) -> list[Record]:
    """Read all records in the file's order; none if there is no file. A torn last line is dropped with a warning.

    Raises:
        ValueError: a line is not a record, or has missing, unknown or wrong fields; names file, line and field.
    """
    if not path.is_file():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    if _is_torn(last):
        print(f"warning: {path}, line {len(lines) + 1}: torn, dropped ({len(last)} bytes)", file=sys.stderr)
    elif last:
        lines.append(last)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_RECORD.validate_json(line))
        except ValidationError as error:
            problems = "; ".join(" ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors())
            raise ValueError(f"{path}, line {number}: {problems}; repair the line or move the file away") from error
    return records


def _is_torn(last: bytes) -> bool:
    """Whether the bytes after the last line end are the beginning of a line whose writer was killed."""
    if not last:
        return False
    try:
        _RECORD.validate_json(last)
    except ValidationError as error:
        return any(fault["type"] == "json_invalid" for fault in error.errors())
    return False


def missing_runs(
    rows: Sequence[str], seeds: Sequence[int], records: Sequence[Record], hashes: Mapping[str, str]
) -> list[tuple[str, int]]:
    """Rows and seeds without a record, seed by seed, so that an interruption leaves as many complete seeds as possible.

    Args:
        hashes: each row's present config hash; records of other configs are ignored.
    """
    done = {(record.row, record.seed) for record in records if record.config_hash == hashes.get(record.row)}
    return [(row, seed) for seed in seeds for row in rows if (row, seed) not in done]


@dataclass(frozen=True)
class Selection:
    """Records that can be in one table: present configs, one record per run, of one machine as far as possible."""

    records: tuple[Record, ...]
    notes: tuple[str, ...]
    """Descriptions of the records that were left out."""
    elsewhere: tuple[str, ...] = ()
    """Descriptions of the records that are of another machine than most."""


def select(records: Sequence[Record], configs: Collection[tuple[str, str]], seeds: Collection[int]) -> Selection:
    """Select the records of one table: those of its configs and seeds on the machine that has most of them, and for
    runs that were not done on it those of other machines, which `Selection.elsewhere` counts.

    If a run was done twice on one machine, the later record is used; of machines with equally many records, the one
    that is first in the file.

    Args:
        configs: present configs as (row, config hash), such as `hashes.items()` of `missing_runs`.
    """
    notes = []
    outdated = [record for record in records if (record.row, record.config_hash) not in configs]
    if outdated:
        notes.append(f"records of other configs: {_count_by_row(outdated)}")
    present = [record for record in records if (record.row, record.config_hash) in configs and record.seed in seeds]
    num_other_seeds = len(records) - len(outdated) - len(present)
    if num_other_seeds:
        notes.append(f"records of seeds that are not the table's: {num_other_seeds}")
    by_machine: dict[str, dict[tuple[str, str, int], Record]] = {}
    for record in present:
        runs = by_machine.setdefault(record.machine, {})
        runs[record.row, record.config_hash, record.seed] = record
    num_repeated = len(present) - sum(map(len, by_machine.values()))
    if num_repeated:
        notes.append(f"records of runs that were done again later: {num_repeated}")
    taken: dict[tuple[str, str, int], Record] = {}
    elsewhere = []
    for machine, runs in sorted(by_machine.items(), key=lambda of: len(of[1]), reverse=True):
        more = {run: record for run, record in runs.items() if run not in taken}
        if taken and more:
            elsewhere.append(f"on another machine ({machine}): {_count_by_row(more.values())}")
        if len(more) < len(runs):
            left = [record for run, record in runs.items() if run not in more]
            notes.append(f"records of another machine ({machine}): {_count_by_row(left)}")
        taken |= more
    return Selection(tuple(taken.values()), tuple(notes), tuple(elsewhere))


def _count_by_row(records: Collection[Record]) -> str:
    return ", ".join(f"{count} {row}" for row, count in Counter(record.row for record in records).items())
