"""Clean stops: a signal sets a flag, which the training loop and its evaluations check."""

import os
import signal
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar

from ovd.distributed import is_main

Kind = TypeVar("Kind")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
EXIT_ON_SIGNAL = 143


class Stopped(Exception):
    """Work was aborted by a request to stop; it can be repeated."""


class StopRequest:
    """A context manager whose `received` becomes true at the first SIGTERM, SIGUSR1, SIGHUP or Ctrl-C inside it.

    The first Ctrl-C prints a line, the second raises KeyboardInterrupt. If SIGHUP is ignored, as under nohup, it stays
    ignored; otherwise, output to a terminal that is gone is discarded after SIGHUP. Only the main thread can receive
    signals; in another one, none is noted.
    """

    def __init__(self) -> None:
        self.received = False
        self._terminals: list[int] = []

    def __enter__(self) -> "StopRequest":
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signals = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
        noted = [number for number in signals if number != signal.SIGHUP or not is_nohup]
        self._previous = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def until_received(self, items: Iterable[Kind]) -> Iterator[Kind]:
        """Yield the items until a stop is requested; an error of loader workers killed by that signal is ignored."""
        try:
            for item in items:
                yield item
                if self.received:
                    return
        except RuntimeError:
            if not self.received:
                raise

    def raise_if_received(self, items: Iterable[Kind]) -> Iterator[Kind]:
        """Yield the items as `until_received` does.

        Raises:
            Stopped: a stop was requested.
        """
        yield from self.until_received(items)
        if self.received:
            raise Stopped

    def finish(self, work: Callable[[], Kind]) -> Kind:
        """Do work that a stop waits for; a second time if the signal has also killed the loader workers of the first.

        Raises:
            RuntimeError: the work failed without a stop request, or failed again.
        """
        try:
            return work()
        except RuntimeError:
            if not self.received:
                raise
        return work()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = True
        if number == signal.SIGINT and is_main():
            os.write(2, b"\nstopping after this step and its checkpoint; Ctrl-C again ends at once\n")
        if number == signal.SIGHUP:
            for descriptor in filter(_is_gone, self._terminals):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def exit_stopped(step: int, message: Callable[[str], None]) -> NoReturn:
    """Exit with code 143, after a run was stopped and its last step saved, so that it can be resumed."""
    message(f"stopped by a signal after step {step}; its checkpoint is saved, and the run can be resumed")
    raise SystemExit(EXIT_ON_SIGNAL)


def _is_gone(terminal: int) -> bool:
    try:
        termios.tcgetattr(terminal)
    except termios.error:
        return True
    return False
