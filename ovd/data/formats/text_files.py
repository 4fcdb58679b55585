"""What readers of text annotations share: lines of a file, and numbers written in them."""

import re
from collections.abc import Iterable
from pathlib import Path

from ovd.data.report import DataError
from ovd.first_of import first_of

_NUM_NAMED = 3
MAX_TEXT_BYTES = 64 * 1024 * 1024

# What float() takes besides (nan, inf, 1_000, digits of other scripts) is damage in an annotation.
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def whole_characters(text: str, where: str) -> str:
    """The text with characters that are written as two halves, as JSON escapes those beyond 16 bits, made whole.

    Raises:
        DataError: F1 it has half a character alone, which UTF-8 cannot hold.
    """
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise DataError("F1", f"{where}: {text!r} has half a character") from None


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The content of an annotation file.

    Raises:
        DataError: F1 it cannot be read, or is larger than the limit in bytes.
    """
    try:
        if (size := path.stat().st_size) > limit:
            raise DataError("F1", f"{path}: {size} bytes, more than {limit}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise DataError("F1", f"{path}: annotation file cannot be read ({reason}); see data/README.md") from error


def refuse_folder(path: Path, wanted: str, ending: str) -> None:
    """Check that annotations are no folder, where a file is read.

    Args:
        wanted: what is read, in words.
        ending: of such files, which are named where there are some in the folder or in those in it.

    Raises:
        DataError: F1 it is one.
    """
    if path.is_dir():
        inside = sorted(path.glob(f"*{ending}")) + sorted(path.glob(f"*/*{ending}"))
        named = f": there is {first_of(inside, _NUM_NAMED)}" if inside else ""
        raise DataError("F1", f"{path} is a folder, but {wanted} is wanted{named}; see data/README.md")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file in UTF-8 that are not blank, without surrounding spaces, with their numbers from 1.

    They end as on any system: Unix, Windows, or the older Macintosh.

    Raises:
        DataError: F1 it cannot be read, or is not UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("F1", f"{path}: not UTF-8 at byte {error.start} of {len(content)}") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def read_names(path: Path) -> list[str]:
    """Class names, one per line, without a blank line between them.

    Raises:
        DataError: F1 it cannot be read, has no name, or has a blank line, which would move the names after it.
    """
    lines = read_lines(path)
    if not lines or lines[-1][0] != len(lines):
        raise DataError("F1", f"{path}: {'a blank line between names' if lines else 'no class name in this file'}")
    return [name for _, name in lines]


def finite_number(text: str | None, limit: float) -> float | None:
    """The number that a text is, if it is a decimal under the limit; None for anything else."""
    if text is None or not _DECIMAL.fullmatch(text.strip()):
        return None
    number = float(text)
    return number if abs(number) < limit else None


def finite_numbers(texts: Iterable[str | None], limit: float) -> list[float] | None:
    """The numbers that texts are; None unless all are decimals under the limit."""
    numbers = []
    for text in texts:
        number = finite_number(text, limit)
        if number is None:
            return None
        numbers.append(number)
    return numbers


def whole_number(text: str | None, limit: float) -> int | None:
    """The whole number from 0 that a text is, also if written as a decimal (640.0); None for anything else."""
    number = finite_number(text, limit)
    return int(number) if number is not None and number >= 0 and number == int(number) else None
