"""Shared parts of all command-line tools: error messages, exit codes, and overrides of a config."""

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
"""Exit codes that shells use for Ctrl-C and for a closed output pipe."""


def add_overrides(parser: ArgumentParser, *, help: str) -> None:
    """Add the argument `overrides`, settings that replace those of a config; parse with `parse_with_overrides`."""
    # Without a default, argparse would report them as required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)


def parse_with_overrides(parser: ArgumentParser) -> Namespace:
    """Parse a command line with `add_overrides`; errors show how to write config settings, and where."""
    arguments, unknown = parser.parse_known_intermixed_args()
    if unknown:
        settings = []
        for word, following in zip(unknown, [*unknown[1:], "-"], strict=True):
            if word.startswith("--"):
                value = "" if "=" in word else f"={'VALUE' if following.startswith('-') else following}"
                settings.append(f"{word.removeprefix('--')}{value}")
        advice = f"; write settings of the config as {' '.join(settings)}" if settings else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
    config = getattr(arguments, "config", None)
    if config is not None and "=" in str(config) and not os.path.exists(config):
        parser.error(f"{config} is a setting; give a config file before it, such as configs/custom_coco.yaml")
    return arguments


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; exit with 2 for bad input, 3 for an error at run time and 130 for Ctrl-C, with a line on stderr.

    If OVD_TRACEBACK is set in the environment, the traceback is printed instead. A closed output pipe exits with 141,
    without a message.
    """
    keep_freed_memory()
    atexit.register(gc.freeze)  # the last garbage collection would take a second with torch's objects, for nothing
    if isinstance(sys.stdout, TextIOWrapper):  # file names need not be valid UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            _flush()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("OVD_TRACEBACK"):
            raise
        if isinstance(error, BrokenPipeError) and _is_pipe_closed(sys.stdout.fileno()):  # by an unbuffered print
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        print(f"{error_line(error)} (set OVD_TRACEBACK=1 to see the traceback)", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_RUN_TIME) from error
    except KeyboardInterrupt:
        if os.environ.get("OVD_TRACEBACK"):
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _flush() -> None:
    """Flush stdout; output that cannot be written is dropped, since Python would try again at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `head` does
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        raise


def error_line(error: Exception) -> str:
    """Return the message that a tool prints for an error, with its code if it is one of docs/faults.md."""
    code = getattr(error, "code", None)
    words = "another rank has stopped; its message says why" if _is_lost_connection(error) else str(error)
    return f"error: {words}" if code is None else f"error[{code}]: {words}"


def _is_pipe_closed(pipe: int) -> bool:
    """Check whether the reading end of a pipe is closed."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


def _is_lost_connection(error: Exception) -> bool:
    """Check whether an error means that torch.distributed lost another process."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("Connection closed by peer", "Connection reset by peer")
    )
