"""Report of the faults in a data set: counts of everything repaired, skipped, or noticed and left as it is, by code.

Codes are those of data/README.md: F4 and F5 concern single boxes, the others whole samples. It always holds that
seen = used + skipped, where boxes left out at the training size count as skipped.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ovd.fault import Fault
from ovd.files import write_json
from ovd.format_count import format_count
from ovd.warn import warn

if TYPE_CHECKING:  # imports torch, which evaluating a results file does not need
    import ovd.structures

Unit = Literal["sample", "box"]
Kind = Literal["skipped", "left out at this size", "repaired", "noticed"]
"""Treatment of the samples or boxes with a fault."""

SIZES_FROM_IMAGES = "data.source.sizes_from_images=true (tools: --sizes-from-images)"
"""Option for records whose sizes differ from those of their images (F12)."""
_BOX_CODES = frozenset({"F4", "F5"})
_NUM_RECORDS_KEPT = 20
_MAX_SKIPPED_IN_A_ROW = 100
_MAX_FAULTY_SHARE = 0.01
_MIN_FAULTY_TO_STOP = 5


def are_too_many(count: int, total: int) -> bool:
    """Return whether this many faults stop a run: at least 5, and at least 1 % of `total`."""
    return count >= max(_MIN_FAULTY_TO_STOP, _MAX_FAULTY_SHARE * total)


class DataError(ValueError):
    """Error in the input data at which a run must stop.

    Attributes:
        code: fault code, such as "F3".
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message

    @property
    def fault(self) -> Fault:
        return Fault(self.code, self.message)


class Finding(NamedTuple):
    """A kind of finding that a report counts: a fault code, and the treatment of its samples or boxes."""

    code: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.code} {self.kind}"


class DataReport:
    """Counts of used, repaired and skipped samples and boxes, with the first 20 records of each finding."""

    def __init__(self, *, stops: bool = True) -> None:
        """
        Args:
            stops: whether too many skips are an error; False for the check of a data set, which reports them all.
        """
        self.stops = stops
        self.error: DataError | None = None
        """First error at which a run would have stopped, if `stops` is False."""
        self._used: Counter[Unit] = Counter()
        self._num_boxes_of_skipped = 0
        self._skipped_in_a_row: Counter[Unit] = Counter()
        self._max_skipped_in_a_row: Counter[Unit] = Counter()
        self._counts: Counter[Finding] = Counter()
        self._skipped_records: dict[str, set[str]] = {}
        self._first: dict[Finding, list[str]] = {}

    def count_used(self, count: int = 1, *, unit: Unit = "sample") -> None:
        """Count samples or boxes that will be used, repaired ones included."""
        if count:
            self._used[unit] += count
            self._skipped_in_a_row[unit] = 0

    def end_skip_streak(self) -> None:
        """End a row of skips at a usable sample, which is counted as used when it is loaded."""
        self._skipped_in_a_row["sample"] = 0

    def count_repaired(self, code: str, where: str) -> None:
        """Count a deterministic repair; `where` names the file and record and describes the repair."""
        self._count(Finding(code, "repaired"), where)

    def count_skipped(self, code: str, where: str) -> None:
        """Count a sample or box that is left out; `where` names the file and record and gives the reason."""
        self._count(Finding(code, "skipped"), where)
        self._skipped_records.setdefault(code, set()).add(where)
        unit = _unit(code)
        self._skipped_in_a_row[unit] += 1
        self._max_skipped_in_a_row[unit] = max(self._max_skipped_in_a_row[unit], self._skipped_in_a_row[unit])

    def count_noticed(self, code: str, where: str) -> None:
        """Count a possible mistake in data that is used as it is, and warn of the first; `where` describes it."""
        finding = Finding(code, "noticed")
        self._count(finding, where)
        if self._counts[finding] == 1:
            warn(f"{where}", code=code)

    def count_left_out_at_size(self, code: str, count: int, first: list[str]) -> None:
        """Count sound boxes that cannot be used at the training size of the images, and warn.

        The boxes were counted as used before. Unlike `skipped` boxes, they never stop a run by their number, since a
        small object is not a fault of the data.

        Args:
            first: file and record of the first such boxes, each with the size that would keep it.
        """
        unit = _unit(code)
        self._used[unit] -= count
        finding = Finding(code, "left out at this size")
        self._counts[finding] += count
        are = "is" if count == 1 else "are"
        warn(f"{format_count(count, 'object')} {are} left out at this size; the first: {first[0]}", code=code)
        for where in first:
            self._keep(finding, where)

    def count_left_out_with_images(self, count: int) -> None:
        """Count the boxes of images that turned out to be left out; the boxes were counted as used before."""
        self._used["box"] -= count
        self.count_skipped_with_images(count)

    def count_skipped_with_images(self, count: int) -> None:
        """Count the boxes of left-out images; the boxes were not counted before."""
        self._num_boxes_of_skipped += count

    def add_batch(self, batch: "ovd.structures.Batch") -> None:
        """Count a batch's samples as used, and each fault in its `skipped` and `repaired`."""
        for fault in batch.repaired:
            self.count_repaired(*fault)
        for fault in batch.skipped:
            self.count_skipped(*fault)
        self.count_used(len(batch.image_ids))

    def add(self, other: "DataReport") -> None:
        """Add the counts of another report, as if they had been made after those of this one."""
        self._used += other._used
        self._num_boxes_of_skipped += other._num_boxes_of_skipped
        self._counts += other._counts
        for code, skipped in other._skipped_records.items():
            self._skipped_records.setdefault(code, set()).update(skipped)
        for unit, count in other._max_skipped_in_a_row.items():
            self._max_skipped_in_a_row[unit] = max(self._max_skipped_in_a_row[unit], count)
        for finding, records in other._first.items():
            for where in records:
                self._keep(finding, where)

    def num_used(self, unit: Unit = "sample") -> int:
        return self._used[unit]

    def num_seen(self, unit: Unit = "sample") -> int:
        """Return the number of samples or boxes used, skipped, or left out by their size or with their image."""
        with_images = self._num_boxes_of_skipped if unit == "box" else 0
        not_used = sum(
            count
            for finding, count in self._counts.items()
            if finding.kind in ("skipped", "left out at this size") and _unit(finding.code) == unit
        )
        return self._used[unit] + with_images + not_used

    def num_skipped(self, code: str) -> int:
        return self._counts[Finding(code, "skipped")]

    def has_skipped(self) -> bool:
        """Return whether a sample or box was skipped for a fault; those left out at the training size do not count."""
        return any(finding.kind == "skipped" for finding in self._counts)

    def stop(self, error: DataError) -> None:
        """Raise an error of the whole data set, or keep it in `error` if the report does not stop.

        Raises:
            DataError: the given error.
        """
        if self.stops:
            raise error
        self.error = self.error or error

    def raise_if_too_many(self, total: int, *, unit: Unit = "sample") -> None:
        """Pass the error of `too_many`, if there is one, to `stop`.

        Raises:
            DataError: too many were skipped; the error has the most frequent code and its first records.
        """
        if (error := self.too_many(total, unit=unit)) is not None:
            self.stop(error)

    def too_many(self, total: int, *, unit: Unit = "sample") -> DataError | None:
        """Return the error that stops a run if too many samples or boxes were skipped, else None.

        Too many are 100 in a row, or at least 5 that make up 1 % of `total` or more. A record that is skipped again
        in every epoch counts once.

        Args:
            total: number of all samples or boxes.
        """
        counts = Counter({code: len(records) for code, records in self._skipped_records.items() if _unit(code) == unit})
        num_skipped = counts.total()
        in_a_row = self._max_skipped_in_a_row[unit]
        if in_a_row < _MAX_SKIPPED_IN_A_ROW and not are_too_many(num_skipped, total):
            return None
        code = counts.most_common(1)[0][0]
        return DataError(
            code,
            f"{num_skipped} of {total} skipped ({in_a_row} of them in a row), by code {dict(sorted(counts.items()))}; "
            f"first: {'; '.join(self._first[Finding(code, 'skipped')][:3])}"
            + (
                f". If the boxes are right and only the sizes are wrong, set {SIZES_FROM_IMAGES}"
                if code == "F12"
                else ""
            ),
        )

    def counts(self) -> dict[Finding, int]:
        """Return the count of each finding, in the order of `Kind` and then of the codes."""
        return {Finding(code, kind): count for kind in get_args(Kind) for code, count in self._by_code(kind).items()}

    def first_records(self) -> dict[Finding, list[str]]:
        """Return the first 20 records of each finding in `counts`."""
        return self._first

    def write(self, path: Path) -> None:
        """Write the report as JSON, the `data_report.json` of a run."""
        units: tuple[Unit, Unit] = ("sample", "box")
        content = {
            "seen": {unit: self.num_seen(unit) for unit in units},
            "used": {unit: self._used[unit] for unit in units},
            "skipped": {unit: self.num_seen(unit) - self._used[unit] for unit in units},
            "skipped_by_code": self._by_code("skipped"),
            "left_out_at_size_by_code": self._by_code("left out at this size"),
            "repaired_by_code": self._by_code("repaired"),
            "noticed_by_code": self._by_code("noticed"),
            "first_records": {str(finding): records for finding, records in sorted(self._first.items())},
        }
        write_json(path, content)

    def _by_code(self, kind: Kind) -> dict[str, int]:
        return {finding.code: count for finding, count in sorted(self._counts.items()) if finding.kind == kind}

    def _count(self, finding: Finding, where: str) -> None:
        self._counts[finding] += 1
        self._keep(finding, where)

    def _keep(self, finding: Finding, where: str) -> None:
        records = self._first.setdefault(finding, [])
        if len(records) < _NUM_RECORDS_KEPT:
            records.append(where)


def _unit(code: str) -> Unit:
    return "box" if code in _BOX_CODES else "sample"
