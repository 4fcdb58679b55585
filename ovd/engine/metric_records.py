"""Reading and writing of `metrics.jsonl`, which has a line for each step, evaluation or measurement (log.py)."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd.files import atomic_write

METRICS_FILE = "metrics.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a file; none if there is no file. An incomplete last line is left out.

    Raises:
        ValueError: a line before the last is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # incomplete, since the run was killed while writing it
            raise ValueError(
                f"{path}, line {number}: invalid JSON ({error}); repair the file or move it away"
            ) from error
    return records


def last_evaluated_step(run_dir: Path) -> int | None:
    """Return the step of a run's last evaluation; None if it was never evaluated.

    Raises:
        ValueError: as `read_records`.
    """
    steps = [record["step"] for record in read_records(run_dir / METRICS_FILE) if record["kind"] == "evaluation"]
    return steps[-1] if steps else None


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the records, in place of the file's content."""
    with atomic_write(path) as file:
        file.writelines(map(to_line, records))


def to_line(record: Mapping[str, Any]) -> str:
    """Format a record as a line of JSON, with null for numbers that are not finite."""
    return json.dumps(_finite_or_null(record), allow_nan=False) + "\n"


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
