"""A context that silences Pillow's warnings about odd images, for all threads of a process."""

import os
import warnings
from threading import Lock


class _SilencedWarnings:
    """A context without Pillow's warnings about odd metadata and large sizes; what matters is checked, and raises.

    Warning filters belong to the process. So the first thread that enters silences warnings, and the last that leaves
    restores the filters: if each thread did both, one could leave the filters of another behind. A process that is
    forked meanwhile starts with no thread inside.
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
        """Reset the state in a forked process."""
        self._lock = Lock()
        if self._num_inside and self._filters is not None:
            self._filters.__exit__(None, None, None)
        self._num_inside, self._filters = 0, None


SILENCED_WARNINGS = _SilencedWarnings()
os.register_at_fork(after_in_child=SILENCED_WARNINGS.forget)
