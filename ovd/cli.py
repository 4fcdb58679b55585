"""What all tools share: faults end in one line and an exit code, not in a traceback."""

import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_RUN_TIME = 3


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a bad input exits with 2, a fault at run time with 3, each with one line on stderr."""
    try:
        main()
    except ValueError as error:
        print(f"error[{_code(error)}]: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from error
    except (RuntimeError, OSError) as error:
        print(f"error[{_code(error)}]: {error}", file=sys.stderr)
        raise SystemExit(EXIT_RUN_TIME) from error


def _code(error: Exception) -> str:
    """The fault's own code where it has one, else the kind of error."""
    return getattr(error, "code", type(error).__name__)
