"""Handling of the death of a loader's worker, which is raised only while a batch is awaited.

torch raises it in its handler of SIGCHLD, during anything that the main thread is doing, such as writing a checkpoint
or waiting for other ranks, which then cannot be informed.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class _DeferredSignal:
    """SIGCHLD handler that calls torch's handler while a batch is awaited, otherwise at the start of the next wait."""

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


def defer_worker_deaths() -> None:
    """Wrap the SIGCHLD handler that torch installed with the workers, so that it acts only in `raise_worker_deaths`."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_main_thread = threading.current_thread() is threading.main_thread()  # other threads cannot install handlers
    if is_main_thread and callable(handler) and not isinstance(handler, _DeferredSignal):
        signal.signal(signal.SIGCHLD, _DeferredSignal(handler))


@contextmanager
def raise_worker_deaths() -> Iterator[None]:
    """Raise the death of a worker in this block; an earlier death is raised at its start.

    Raises:
        RuntimeError: a worker was killed.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, _DeferredSignal):
        with handler.waiting():
            yield
    else:
        yield
