"""Helpers for readers of text annotations: files, their lines, and the numbers in them."""

import re
from collections.abc import Iterable
from pathlib import Path

from ovd.data.report import DataError
from ovd.join_first import join_first

_NUM_NAMED = 3
MAX_TEXT_BYTES = 64 * 1024 * 1024

# float() also accepts nan, inf, 1_000 and digits of other scripts, which are damage in an annotation.
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def whole_characters(text: str, where: str) -> str:
    """Join surrogate pairs in a text, the escapes that JSON uses for characters beyond 16 bits.

    Raises:
        DataError: F1 the text has an unpaired surrogate, which UTF-8 cannot encode.
    """
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise DataError("F1", f"{where}: {text!r} has a lone surrogate (half of a character)") from None


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read the content of an annotation file.

    Raises:
        DataError: F1 the file cannot be read, or is larger than the limit in bytes.
    """
    try:
        if (size := path.stat().st_size) > limit:
            raise DataError("F1", f"{path}: the file has {size} bytes, more than {limit}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise DataError("F1", f"{path}: annotation file cannot be read ({reason}); see data/README.md") from error


def refuse_folder(path: Path, wanted: str, ending: str) -> None:
    """Check that the path of a single annotation file is not a folder.

    Args:
        wanted: the expected kind of file, for the message.
        ending: suffix of such files; the message names some of them in the folder and its subfolders.

    Raises:
        DataError: F1 the path is a folder.
    """
    if path.is_dir():
        inside = sorted(path.glob(f"*{ending}")) + sorted(path.glob(f"*/*{ending}"))
        named = f"; it contains {join_first(inside, _NUM_NAMED)}" if inside else ""
        raise DataError("F1", f"{path} is a folder; give {wanted}{named}; see data/README.md")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a UTF-8 text file that are not blank, stripped, with their numbers from 1.

    Line ends may be those of Unix, Windows, or the older Macintosh.

    Raises:
        DataError: F1 the file cannot be read, or is not UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("F1", f"{path}: invalid UTF-8 at byte {error.start} of {len(content)}") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def read_names(path: Path) -> list[str]:
    """Read class names, one per line, without blank lines between them.

    Raises:
        DataError: F1 the file cannot be read, has no name, or has a blank line, which would shift the names after it.
    """
    lines = read_lines(path)
    if not lines or lines[-1][0] != len(lines):
        raise DataError("F1", f"{path}: {'a blank line between names' if lines else 'no class name in this file'}")
    return [name for _, name in lines]


def finite_number(text: str | None, limit: float) -> float | None:
    """Parse a decimal whose absolute value is under the limit; None for any other text."""
    if text is None or not _DECIMAL.fullmatch(text.strip()):
        return None
    number = float(text)
    return number if abs(number) < limit else None


def finite_numbers(texts: Iterable[str | None], limit: float) -> list[float] | None:
    """Parse decimals whose absolute values are under the limit; None unless all texts are such."""
    numbers = []
    for text in texts:
        number = finite_number(text, limit)
        if number is None:
            return None
        numbers.append(number)
    return numbers


def whole_number(text: str | None, limit: float) -> int | None:
    """Parse a whole number from 0 on, also if written as a decimal (640.0); None for any other text."""
    number = finite_number(text, limit)
    return int(number) if number is not None and number >= 0 and number == int(number) else None
