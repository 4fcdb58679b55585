"""The death of a loader's worker is raised where a batch is waited for, and nowhere else.

torch raises it in its handler of SIGCHLD, in whatever the main thread does then: writing a checkpoint, say, or waiting
for other ranks, which then cannot be told.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class _HeldBack:
    """A handler of SIGCHLD that calls torch's while a batch is waited for, and at the beginning of the next wait."""

    def __init__(self, notice: Callable[[int, FrameType | None], None]):
        self._notice = notice
        self._is_waiting = False
        self._has_signal = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting:
            self._notice(number, frame)
        else:
            self._has_signal = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._is_waiting = True
        try:
            if self._has_signal:
                self._has_signal = False
                self._notice(signal.SIGCHLD, None)
            yield
        finally:
            self._is_waiting = False


def hold_back_deaths() -> None:
    """Put the handler that torch has installed with the workers behind one that waits for `raising_deaths`."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_main_thread = threading.current_thread() is threading.main_thread()  # others cannot install handlers
    if is_main_thread and callable(handler) and not isinstance(handler, _HeldBack):
        signal.signal(signal.SIGCHLD, _HeldBack(handler))


@contextmanager
def raising_deaths() -> Iterator[None]:
    """A block in which the death of a worker is raised; one that came before the block is raised at its beginning.

    Raises:
        RuntimeError: a worker was killed.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, _HeldBack):
        with handler.waiting():
            yield
    else:
        yield
