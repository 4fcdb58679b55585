"""Reading of CSV files line by line."""

import csv
from collections.abc import Iterator
from pathlib import Path

from ovd.data.report import DataError


def csv_lines(path: Path, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a CSV file with their numbers, without reading the whole file, which may have gigabytes.

    Raises:
        DataError: F1 the file cannot be read, or is not CSV in UTF-8.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=strict)
            for values in reader:
                number = reader.line_num
                yield number, values
    except csv.Error as error:
        raise DataError("F1", f"{path}: line {number + 1} is not valid CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError("F1", f"{path}: invalid UTF-8 shortly after line {number} ({error.reason})") from error
    except OSError as error:
        raise DataError("F1", f"{path}: cannot be read ({error.strerror or error}); see data/README.md") from error
