"""Pillow's remarks on odd images, silenced in one process for all threads."""

import os
import warnings
from threading import Lock


class _Remarks:
    """A context without Pillow's remarks on odd metadata, and on sizes, which are checked here: what matters raises.

    Filters of warnings belong to the process. So the first thread that comes silences them, and the last that leaves
    puts back what there was: threads that did so each for itself could leave another's behind. In a process that is
    forked meanwhile nobody is inside.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._num_inside = 0
        self._filters: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0 and self._filters is not None:
                self._filters.__exit__(None, None, None)
                self._filters = None

    def forget(self) -> None:
        """Begin anew, in a forked process."""
        self._lock = Lock()
        if self._num_inside and self._filters is not None:
            self._filters.__exit__(None, None, None)
        self._num_inside, self._filters = 0, None


NO_REMARKS = _Remarks()
os.register_at_fork(after_in_child=NO_REMARKS.forget)
