"""Warnings of the tools on standard error."""

import sys


def warn(text: str, *, code: str | None = None) -> None:
    """Print a warning, with its code if it is one of docs/faults.md."""
    print(f"warning: {text}" if code is None else f"warning[{code}]: {text}", file=sys.stderr)
