"""Records of the ablation's finished runs, the runs that are missing, and the selection of records for a table."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveInt

from ovd.ablation.record_file import RECORD_CONFIG

Metric = Annotated[float, Field(ge=-1, le=1)]
"""A metric, 0 to 1; -1 if there is no true box to measure it on."""
DecisionScore = Annotated[float, Field(ge=-100, le=100)]
"""A cgF1, -100 to 100; less than 0 if reported classes are present less often than the others."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=RECORD_CONFIG)
class Record:
    """The record of one finished run."""

    row: str
    seed: int
    AP: Metric
    """LVIS ordinary box AP over all classes; `APr`, `APc` and `APf` over rare, common and frequent ones."""
    APr: Metric
    APc: Metric
    APf: Metric
    coco_AP: Metric
    o365_AP: Metric
    exhaustive_APr: Metric | None = None
    """COCO AP of rare classes on the exhaustive ground truth. In early records, this to `brier_rare` are None."""
    rare_named: Metric | None = None
    """Share of true boxes of rare classes that the detector names right among all names."""
    base_named: Metric | None = None
    """Share of true boxes of base classes that the detector names right among all names."""
    cgF1: DecisionScore | None = None
    """cgF1 of all classes (evaluation/decisions.py), at thresholds chosen on base classes."""
    cgF1_rare: DecisionScore | None = None
    """cgF1 of rare classes, at thresholds chosen on base classes."""
    IL_MCC: Metric | None = None
    absent_per_image: NonNegativeFloat | None = None
    """Number of absent classes reported per image, at the detector's own threshold, or else at those of `cgF1`."""
    ece_rare: Metric | None = None
    """Expected calibration error of rare classes."""
    brier_rare: Metric | None = None
    """Brier score of rare classes."""
    hours: NonNegativeFloat
    config_hash: str
    """Hash of the row's config, the same for every seed."""
    steps: PositiveInt
    """Optimizer steps of all stages together."""
    device: str
    instruction_set: str
    versions: dict[str, str]
    """Versions of Python and of packages, by name. Like device and instruction set, they affect the bits of a run."""
    date: str
    extra: dict[str, float] = Field(default_factory=dict)
    """Further metrics by name."""

    @property
    def machine(self) -> str:
        """Device, instruction set and versions in one line: with config and seed, they determine the bits of a run."""
        versions = (f"{name} {version}" for name, version in sorted(self.versions.items()))
        return ", ".join([self.device, self.instruction_set, *versions])


@runtime_checkable
class AnyRecord(Protocol):
    """The fields that every kind of record has."""

    @property
    def row(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def config_hash(self) -> str: ...


def missing_runs(
    rows: Sequence[str], seeds: Sequence[int], records: Sequence[AnyRecord], hashes: Mapping[str, str]
) -> list[tuple[str, int]]:
    """List the rows and seeds without a record, seed by seed, so that most seeds are complete after an interruption.

    Args:
        hashes: present config hash of each row; records of other configs are ignored.
    """
    done = {(record.row, record.seed) for record in records if record.config_hash == hashes.get(record.row)}
    return [(row, seed) for seed in dict.fromkeys(seeds) for row in rows if (row, seed) not in done]


@dataclass(frozen=True)
class Selection:
    """Records that can be in one table: of present configs, one per run, and of one machine as far as possible."""

    records: tuple[Record, ...]
    notes: tuple[str, ...]
    """Descriptions of the records that were left out."""
    other_machines: tuple[str, ...] = ()
    """Descriptions of the selected records that are of another machine than most."""


def select(records: Sequence[Record], configs: Collection[tuple[str, str]], seeds: Collection[int]) -> Selection:
    """Select the records of one table.

    These are the records of its configs and seeds on the machine that has most of them and, for runs that were not done
    there, the records of other machines, which `Selection.other_machines` describes. If a run was done twice on one
    machine, the later record is used; of machines with equally many records, the one that is first in the file.

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
        notes.append(f"records of seeds that the table does not have: {num_other_seeds}")
    by_machine: dict[str, dict[tuple[str, str, int], Record]] = {}
    for record in present:
        runs = by_machine.setdefault(record.machine, {})
        runs[record.row, record.config_hash, record.seed] = record
    num_repeated = len(present) - sum(map(len, by_machine.values()))
    if num_repeated:
        notes.append(f"records of runs that were done again later: {num_repeated}")
    taken: dict[tuple[str, str, int], Record] = {}
    other_machines = []
    for machine, runs in sorted(by_machine.items(), key=lambda of: len(of[1]), reverse=True):
        more = {run: record for run, record in runs.items() if run not in taken}
        if taken and more:
            other_machines.append(f"on another machine ({machine}): {_count_by_row(more.values())}")
        if len(more) < len(runs):
            left = [record for run, record in runs.items() if run not in more]
            notes.append(f"records of another machine ({machine}): {_count_by_row(left)}")
        taken |= more
    return Selection(tuple(taken.values()), tuple(notes), tuple(other_machines))


def _count_by_row(records: Collection[Record]) -> str:
    return ", ".join(f"{count} {row}" for row, count in Counter(record.row for record in records).items())
