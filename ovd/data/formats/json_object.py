"""Reading of a file that holds one JSON object, and a check of the numbers in it."""

import json
import sys
from pathlib import Path
from typing import Any

from ovd.data.formats.text_files import MAX_TEXT_BYTES, read_bytes
from ovd.data.report import DataError


def read_json_object(path: Path, limit: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Read a UTF-8 file that holds one JSON object.

    Raises:
        DataError: F1 the file cannot be read, is larger than the limit in bytes, or holds something else.
    """
    content = read_bytes(path, limit)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise DataError("F1", f"{path}: invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError("F1", f"{path}: contains a {type(value).__name__}, not an object")
    return value


def is_number(value: Any, limit: float) -> bool:
    """Whether a JSON value is a finite number that fits float64 and whose absolute value is under the limit."""
    # Types are compared, since NumPy would turn the string "1.5" and true into numbers.
    return type(value) in (int, float) and abs(value) < limit and abs(value) <= sys.float_info.max
