"""The frame of all tools: an error ends in one line and an exit code, not in a traceback; overrides of a config."""

import atexit
import gc
import os
import select
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from io import TextIOWrapper

from ovd.heap import keep_freed_memory

EXIT_BAD_INPUT = 2
EXIT_RUN_TIME = 3
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141
"""As shells have them for Ctrl-C, and for output that is read no further."""


def add_overrides(parser: ArgumentParser, *, help: str) -> None:
    """Adds `overrides`, settings that replace those of a config file; parse with `parse_with_overrides`."""
    # With a default, argparse does not call them required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)


def parse_with_overrides(parser: ArgumentParser) -> Namespace:
    """Parse a command line with `add_overrides`; of options that there are not it is said how settings are given."""
    arguments, unknown = parser.parse_known_intermixed_args()
    if unknown:
        settings = []
        for word, following in zip(unknown, [*unknown[1:], "-"], strict=True):
            if word.startswith("--"):
                value = "" if "=" in word else f"={'VALUE' if following.startswith('-') else following}"
                settings.append(f"{word.removeprefix('--')}{value}")
        advice = f"; settings of the config are given as {' '.join(settings)}" if settings else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
    return arguments


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a bad input exits with 2, an error at run time with 3, Ctrl-C with 130, each with a line on stderr.

    With OVD_TRACEBACK set in the environment the traceback is printed too.
    """
    keep_freed_memory()
    atexit.register(gc.freeze)  # all memory goes with the process; to look for garbage in torch's takes a second
    if isinstance(sys.stdout, TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            _flush()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("OVD_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError) and _is_read_no_further(sys.stdout.fileno()):  # without a buffer
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        print(f"{error_line(error)} (OVD_TRACEBACK=1 shows where)", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_RUN_TIME) from error
    except KeyboardInterrupt:
        if os.environ.get("OVD_TRACEBACK"):
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _flush() -> None:
    """Write what was printed. What cannot be written is dropped, or Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # read no further, by head for example
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        raise


def error_line(error: Exception) -> str:
    """What a tool says of an error, with its code where it is one of docs/faults.md."""
    code = getattr(error, "code", None)
    words = "another rank has stopped; its own words say why" if _is_of_another_rank(error) else str(error)
    return f"error: {words}" if code is None else f"error[{code}]: {words}"


def _is_read_no_further(pipe: int) -> bool:
    """Whether the other end of a pipe that is written to is closed."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


def _is_of_another_rank(error: Exception) -> bool:
    """Whether torch.distributed lost a process that this one was waiting for."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("Connection closed by peer", "Connection reset by peer")
    )
